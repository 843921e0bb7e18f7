# A silo that trains on a GPU of NVIDIA. Made from the repository's folder:
#     docker build -f packaging/docker/client-gpu.Dockerfile -t silorec-client:gpu .
# PyTorch 2.13 as the package index has it brings the libraries of CUDA 13.0 that it was built with; the driver (580 or later) comes
# from the host by way of the NVIDIA Container Toolkit. A base image with a second CUDA runtime would lie beside it unused.
FROM python:3.11.14-slim-bookworm AS build
ARG EXTRAS=client,sql
WORKDIR /build
COPY constraints.txt ./
RUN python -m venv /opt/silorec \
    && /opt/silorec/bin/python -m pip install --no-cache-dir -c constraints.txt torch
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
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/silorec
VOLUME ["/home/silorec"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s --retries=3 \
    CMD ["silorec", "status", "/home/silorec/silo"]
ENTRYPOINT ["silorec"]
CMD ["client", "up", "/home/silorec/silo"]
