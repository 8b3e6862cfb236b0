"""What ordinary LangChain chains answer: the demo's questions in prompts that know nothing of this package.

    python -m experiments.chain_answers --questions 60

A retriever, a prompt and `ChatGritRAG`; each question is asked from text, from states, and from states without the
relevance bias. The prompts have the documents in the user's message, before it, or as blocks of content.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from experiments.script import run
from gritrag import GritModel, Index
from gritrag.config import DEFAULT_MODEL
from gritrag.corpus import documents, questions
from gritrag.demo import is_right
from gritrag.evaluate.machine import machine_of
from gritrag.langchain import ChatGritRAG, GritRetriever, docs_to_messages
from gritrag.progress import ProgressBar

WAYS: dict[str, dict[str, Any]] = {
    "text": {"mode": "doc-query"},
    "states": {},
    "states, no bias": {"relevance_bias": 0},
}
PROMPTS = ("in the question's message", "in the system message", "as blocks")


def messages_of(prompt: str, retriever: GritRetriever, question: str) -> list[BaseMessage]:
    found = retriever.invoke(question)
    context = "\n\n".join(document.page_content for document in found)
    if prompt == PROMPTS[0]:
        return [
            HumanMessage(
                "Answer the question from the following context only.\n\n" + context + f"\n\nQuestion: {question}"
            )
        ]
    if prompt == PROMPTS[1]:
        return [
            SystemMessage(f"You answer questions from these passages, in a few words.\n\n{context}"),
            HumanMessage(question),
        ]
    return [*docs_to_messages(found), HumanMessage(question)]


def main(
    count: Annotated[int, typer.Option("--questions", help="Of the demo.", min=1)] = 60,
    k: Annotated[int, typer.Option("-k", help="Documents in a prompt.", min=1)] = 4,
    model: Annotated[str, typer.Option(help="Name or folder of a checkpoint.")] = DEFAULT_MODEL,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Count right answers and print them as JSON."""
    grit = GritModel.from_pretrained(model, dtype=dtype)
    asked = questions()[:count]
    right = {prompt: dict.fromkeys(WAYS, 0) for prompt in PROMPTS}
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "index", model=grit) as index:
        index.add(documents(), show_progress_bar=True)
        chat, retriever = ChatGritRAG(model=grit, index=index, max_tokens=24), GritRetriever(index=index, k=k)
        for question in ProgressBar(asked, desc="asking", unit="question"):
            for prompt in PROMPTS:
                messages = messages_of(prompt, retriever, question.question)
                for way, options in WAYS.items():
                    right[prompt][way] += is_right(chat.invoke(messages, **options).text, question.answers)
    facts = {"model": model, **machine_of(grit), "questions": len(asked), "k": k}
    typer.echo(json.dumps({**facts, "right": right}, indent=2))


if __name__ == "__main__":
    run(main)
