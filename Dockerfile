# Two images: `docker build --target cpu .` and `docker build --target cuda .`; run the latter with `--gpus all`.
ARG BASE_IMAGE=python:3.12-slim-bookworm
ARG CUDA_BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE_IMAGE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY fcdense fcdense
COPY kernels kernels
COPY bench bench
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE_IMAGE} AS cpu
LABEL org.opencontainers.image.title="fcdense" \
      org.opencontainers.image.description="Fused dense networks, on the CPU" \
      org.opencontainers.image.licenses="MIT"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m venv /opt/fcdense \
    && /opt/fcdense/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[numba,plot]" \
    && install --directory --owner=10001 --group=10001 /cache /workspace
ENV PATH=/opt/fcdense/bin:${PATH} \
    HOME=/cache \
    FCDENSE_CACHE=/cache/fcdense
USER 10001:10001
WORKDIR /workspace
ENTRYPOINT ["fcdense"]
CMD ["info"]

# The CUDA libraries come as wheels; of the base image only the settings for the NVIDIA container runtime are used.
FROM ${CUDA_BASE_IMAGE} AS cuda
LABEL org.opencontainers.image.title="fcdense" \
      org.opencontainers.image.description="Fused dense networks, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="MIT"
# The distribution's Python of the pinned base; its patch releases are wanted.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m venv /opt/fcdense \
    && /opt/fcdense/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[cuda13,numba,plot]" \
    && install --directory --owner=10001 --group=10001 /cache /workspace
ENV PATH=/opt/fcdense/bin:${PATH} \
    HOME=/cache \
    FCDENSE_CACHE=/cache/fcdense \
    CUPY_CACHE_DIR=/cache/cupy \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /workspace
ENTRYPOINT ["fcdense"]
CMD ["info"]
