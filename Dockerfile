# ossia in a container: docker build -t ossia . && docker run -it --rm ossia chat
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir --prefix=/install --constraint constraints.txt '.[hub]'

FROM python:3.12-slim
COPY --from=build /install /usr/local
RUN useradd --create-home ossia
USER ossia
WORKDIR /home/ossia
# Models fetched by `ossia pull` live here; mount a volume to keep them.
ENV HF_HOME=/home/ossia/models
VOLUME /home/ossia/models
ENTRYPOINT ["ossia"]
CMD ["chat"]
