# cpo_ds for NVIDIA GPUs. Build it in the checkout, run it with the host's GPUs and shared memory:
#   docker build -t cpo-ds .
#   docker build -t cpo-ds --build-arg FLASH_ATTN=2.8.3 .       # compiles flash-attn, about an hour
#   docker run --gpus all --ipc host --network host -v "$PWD:/work" cpo-ds \
#     cpo-ds train --config own-pairs --data.path pairs.jsonl
# Versions of Python packages are those of constraints.txt. torch brings its own CUDA libraries; the
# compiler of the base image is for DeepSpeed's and flash-attn's kernels.
ARG CUDA=13.0.2
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04

# ssh and pdsh start ranks on other hosts; OpenMPI launches them in its own way.
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
      git iproute2 libopenmpi-dev ninja-build openmpi-bin openssh-client openssh-server pdsh \
      python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
ENV PDSH_RCMD_TYPE=ssh \
    VIRTUAL_ENV=/venv \
    PATH=/venv/bin:$PATH

# Dependencies in layers of their own, which changes of the code leave as they are.
WORKDIR /src
COPY constraints.txt ./
RUN python3 -m venv "$VIRTUAL_ENV" \
 && pip install --no-cache-dir -c constraints.txt \
      bitsandbytes deepspeed datasets mpi4py peft setuptools tensorboard torch transformers
ARG FLASH_ATTN=
RUN if [ -n "$FLASH_ATTN" ]; then \
      pip install --no-cache-dir --no-build-isolation -c constraints.txt "flash-attn==$FLASH_ATTN"; \
    fi

COPY pyproject.toml setup.py README.md LICENSE ./
COPY cpo_ds/ cpo_ds/
COPY ds_configs/ ds_configs/
COPY hostfiles/ hostfiles/
COPY recipes/ recipes/
RUN pip install --no-cache-dir -c constraints.txt --no-build-isolation '.[mpi,quantization,langid,api]' \
 && cpo-ds --help > /dev/null

WORKDIR /work
CMD ["bash"]
