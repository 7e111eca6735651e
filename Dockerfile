# The daemon as an image: docker build -t spendmeter .
# A token to come in with:  docker run --rm -v "$HOME/.local/share/spendmeter:/data" spendmeter token create me --scope read,metrics
# and the daemon:           docker run -v "$HOME/.local/share/spendmeter:/data" -p 127.0.0.1:9464:9464 spendmeter
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --wheel-dir /wheels '.[server,postgres,watch,mcp]'

FROM python:3.12-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels 'spendmeter[server,postgres,watch,mcp]' \
    && rm -rf /wheels \
    && useradd --uid 10001 --no-create-home spendmeter \
    && install -d -o spendmeter /data
USER 10001
ENV SPENDMETER_LEDGER=sqlite:////data/ledger.db HOME=/tmp
VOLUME /data
EXPOSE 9464
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/readyz', timeout=4)"]
ENTRYPOINT ["spendmeter"]
CMD ["serve", "--host", "0.0.0.0"]
