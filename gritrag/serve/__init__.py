"""An HTTP server over indexes and one model: the routes of OpenAI's API that RAG clients use, and our own.

One engine thread holds the model. Embedding, reading and decoding of all requests go through it in steps that share a
budget of tokens.
"""
