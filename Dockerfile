# docker build -t malcli .                  GPUs from 2018 on (Turing and later), driver 580 or later
# docker build -t malcli --target volta .   V100 (sm_70), or drivers 525-579
# docker run --rm --gpus all -v "$PWD:/data" malcli label --boxes boxes.json --out masks.json
# The torch wheels bring CUDA along, so no CUDA base image is needed.
FROM python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 malcli
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY malcli ./malcli

FROM base AS volta
# 2.14.1: the last torch with code for sm_70; both packages from one index, so that they match.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu126
RUN pip install "torch==2.14.1" torchvision --index-url "$TORCH_INDEX" && pip install .
USER malcli
WORKDIR /data
ENTRYPOINT ["malcli"]

FROM base AS latest
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install torch torchvision --index-url "$TORCH_INDEX" && pip install .
USER malcli
WORKDIR /data
ENTRYPOINT ["malcli"]
