# docker build -t atlas-serve .
# docker run -p 127.0.0.1:8000:8000 -v atlas-data:/data atlas-serve
#
# The default is torch's CPU build. For CUDA take pip's own index, whose Linux wheels are the CUDA build, and run the
# container with --gpus all -e ATLAS_DEVICE=cuda:
#   docker build --build-arg TORCH_INDEX=https://pypi.org/simple -t atlas-serve:cuda .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/atlas
WORKDIR /build
COPY constraints.txt .
RUN /opt/atlas/bin/pip install --constraint constraints.txt --index-url "${TORCH_INDEX}" torch
COPY . .
RUN /opt/atlas/bin/pip install --constraint constraints.txt .

FROM ${PYTHON_IMAGE}
# The kernels of decode steps are compiled for the processor that the container runs on, once for a volume.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --no-create-home atlas && install -d -o atlas -g atlas -m 0700 /data
COPY --from=builder /opt/atlas /opt/atlas
ENV PATH=/opt/atlas/bin:$PATH PYTHONUNBUFFERED=1 ATLAS_HOST=0.0.0.0 ATLAS_PORT=8000 ATLAS_DATA_DIR=/data \
    XDG_CACHE_HOME=/data/cache
USER atlas
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['ATLAS_PORT'] + '/ready', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["python", "-m", "server"]
