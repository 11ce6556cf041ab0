# syntax=docker/dockerfile:1
# docker build -t fastsocks .
# docker run --stop-timeout 20 -p 127.0.0.1:1080:1080 -e FASTSOCKS_PASSWORD=secret fastsocks -u me
#
# For UDP ASSOCIATE also -p 127.0.0.1:40000-40099:40000-40099/udp, and behind -u me the flags
# --udp-ports 40000-40099 --udp-address 127.0.0.1 (where clients find those ports). To the proxy
# no client comes from loopback here: what is private is reached with --allow only.
#
# A users file has to be readable for user 65534. Mount its directory: of a file that is mounted
# by itself, what "fastsocks passwd" writes later is not seen.

FROM python:3.14-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m venv /opt/fastsocks \
    && /opt/fastsocks/bin/pip install --no-cache-dir '.[argon2,bcrypt]'

FROM python:3.14-slim
COPY --from=build /opt/fastsocks /opt/fastsocks
ENV PATH=/opt/fastsocks/bin:$PATH
USER 65534:65534
EXPOSE 1080
STOPSIGNAL SIGTERM
# A greeting that offers every method is answered by a SOCKS5 server whatever its users.
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s CMD ["python", "-c", "import socket; s = socket.create_connection(('127.0.0.1', 1080), 4); s.sendall(b'\\5\\2\\0\\2'); raise SystemExit(s.recv(1) != b'\\5')"]
# All addresses of the container, so a user has to be named, or --open.
ENTRYPOINT ["fastsocks", "--listen", "0.0.0.0:1080"]
