# Everything that a run needs, from the lock: docker build -t stopwise:0.1.0 .
# Neither this image nor the conda files of envs/ were built where stopwise was developed: no container engine, no conda.
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends git fonts-dejavu-core \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/stopwise
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY pyproject.toml README.md LICENSE Snakefile config.yaml ./
COPY src src
COPY workflow workflow
COPY config config
COPY profiles profiles
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e .
WORKDIR /data
