# The coordinator: Flower's SuperLink behind the consortium's gate, and the run. Made from the repository's folder:
#     docker build -f packaging/docker/server.Dockerfile -t silorec-server .
# Keys, roster and results lie in the volume, never in a layer.
FROM python:3.11.14-slim-bookworm AS build
ARG EXTRAS=server
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY constraints.txt ./
RUN python -m venv /opt/silorec \
    && /opt/silorec/bin/python -m pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" -c constraints.txt torch
COPY LICENSE README.md pyproject.toml silorec.py ./
COPY client ./client
COPY common ./common
COPY server ./server
COPY simulations ./simulations
RUN /opt/silorec/bin/python -m pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM python:3.11.14-slim-bookworm
RUN groupadd --gid 10001 silorec \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /home/silorec --shell /usr/sbin/nologin silorec \
    && install -d -o 10001 -g 10001 -m 0700 /home/silorec
COPY --from=build /opt/silorec /opt/silorec
ENV PATH=/opt/silorec/bin:$PATH \
    HOME=/home/silorec \
    SILOREC_CACHE=/home/silorec/cache \
    SILOREC_LOG_FORMAT=json \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/silorec
VOLUME ["/home/silorec"]
EXPOSE 9092
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s --retries=3 \
    CMD ["silorec", "status", "/home/silorec/coordinator"]
ENTRYPOINT ["silorec"]
CMD ["server", "up", "/home/silorec/coordinator", "--config", "/home/silorec/run.toml"]
