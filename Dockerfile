# Yunhe's one image: the operator, the agents of engines on Kubernetes, and the command line.
#
#     docker build --tag REGISTRY/yunhe:0.1.0 .

FROM python:3.11-slim-bookworm AS build
COPY requirements-image.lock /src/
RUN python -m venv /opt/yunhe && /opt/yunhe/bin/pip install --no-cache-dir --require-hashes -r /src/requirements-image.lock
COPY pyproject.toml README.md /src/
COPY controlplane /src/controlplane
COPY dataplane /src/dataplane
COPY providers /src/providers
COPY stacks /src/stacks
RUN /opt/yunhe/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-index /src

FROM python:3.11-slim-bookworm
COPY --from=build /opt/yunhe /opt/yunhe
# Bytecode was compiled above; pods have a read-only file system.
ENV PATH=/opt/yunhe/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 1001:1001
CMD ["yunhe", "--help"]
