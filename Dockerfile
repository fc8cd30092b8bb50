# vssl in a container: docker build --tag vssl . ; docker run --rm --volume "$PWD:/work" --user "$(id -u):$(id -g)" vssl vssl demo
# For GPUs: docker build --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 --build-arg TORCH=https://pypi.org/simple --tag vssl .
# and docker run --gpus all. BASE: any Debian or Ubuntu with Python 3.11, 3.12 or 3.13.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# hadolint ignore=DL3008 # the versions are those of the base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# TORCH: where PyTorch comes from, by default its builds for CPUs, which are small
ARG TORCH=https://download.pytorch.org/whl/cpu
ENV PATH=/opt/vssl/bin:$PATH
WORKDIR /src
COPY constraints.txt pyproject.toml setup.cfg README.md LICENSE ./
COPY cli cli
COPY data_manifests data_manifests
COPY labelgen labelgen
COPY trainer trainer
RUN python3 -m venv /opt/vssl \
    && pip install --no-cache-dir --constraint constraints.txt --extra-index-url "${TORCH}" '.[dask,export,loggers,map]'

# folders that every user may write: Numba's compiled kernels, settings of packages
ENV HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba
WORKDIR /work
USER 65534:65534
CMD ["vssl", "--help"]
