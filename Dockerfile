# Two images: `--target production`, which is the default, and `--target development`. docs/deploy/containers.md shows how to use them.
# Another base needs Python 3.11 or newer as python3, with venv, and Debian's useradd.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS base
# Nothing writes below /opt: the root may be read-only.
ENV PATH=/opt/metrics-service/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The folder is made here, since a new volume has the owner of the folder that it covers.
RUN groupadd --gid 1001 metrics \
    && useradd --uid 1001 --gid 1001 --no-create-home --home-dir /var/lib/sqlite --shell /usr/sbin/nologin metrics \
    && install -d -o metrics -g metrics -m 0750 /var/lib/sqlite

# pip and what builds the wheel are in /opt/build, which production doesn't get.
FROM base AS dependencies
WORKDIR /app
COPY requirements-build.lock requirements.lock ./
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.lock \
    && python3 -m venv --without-pip /opt/metrics-service \
    && /opt/build/bin/pip --python /opt/metrics-service/bin/python install --no-cache-dir --require-hashes -r requirements.lock

FROM dependencies AS development
COPY requirements-dev.lock ./
RUN /opt/build/bin/pip --python /opt/metrics-service/bin/python install --no-cache-dir --no-compile --require-hashes -r requirements-dev.lock
COPY pyproject.toml README.md LICENSE migrate.py create_api_key.py ./
COPY config config
COPY pipeline pipeline
COPY plugins plugins
# Editable: compose.yaml mounts the checkout over /app.
RUN /opt/build/bin/pip --python /opt/metrics-service/bin/python install --no-index --no-deps --no-build-isolation --editable .
# In a container, loopback is nobody's; compose.yaml publishes the ports on the host's.
ENV METRICS_CONFIG=development METRICS_SERVICE_HOST=0.0.0.0 SQLITE_DB_PATH=/var/lib/sqlite/metrics.db
USER 1001:1001
VOLUME /var/lib/sqlite
EXPOSE 8890 9465
CMD ["metrics-service", "run"]

FROM dependencies AS build
COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY pipeline pipeline
COPY plugins plugins
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /wheels \
    && /opt/build/bin/pip --python /opt/metrics-service/bin/python install --no-index --no-deps /wheels/*.whl

FROM base AS production
COPY --from=build /opt/metrics-service /opt/metrics-service
# A variable, not an argument, so that every command in the container finds the configuration, and the database, of the service.
ENV METRICS_CONFIG=production
USER 1001:1001
WORKDIR /var/lib/sqlite
VOLUME /var/lib/sqlite
EXPOSE 8890 9465
# Kept by `--format docker` alone: the OCI's format has no health check.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["metrics-service", "healthcheck"]
# The service applies its migrations when it starts: at build there is no database yet.
CMD ["metrics-service", "run"]
