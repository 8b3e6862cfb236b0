"""How much sooner an unchanged chain answers from states: the same prompts, with states and with states switched off.

Both ways read the same tokens in the same order and take turns, so a ratio compares runs that are close in time.
Seconds count from the call of the chain, so they include embedding and searching. Then one letter of the passage that
answers is edited on its way to the prompt: its state is not used, and the answer still comes.

    python examples/langchain/first_token.py [documents per question]
"""

import sys
import tempfile
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

from langchain_core.documents import Document
from langchain_core.messages import AIMessageChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough

from gritrag import GritModel, Index
from gritrag.corpus import Question, documents, questions
from gritrag.demo import is_right
from gritrag.langchain import ChatGritRAG, GritRetriever

PROMPT = ChatPromptTemplate.from_template(
    "Answer the question from the following context only.\n\n{context}\n\nQuestion: {question}"
)


class Run(NamedTuple):
    """One answer: seconds to its first token, and the share of document tokens that were not read again."""

    seconds: float
    reused: float
    text: str


def format_documents(found: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in found)


def make_chain(index: Index, k: int, mode: str, edit: Callable[[str], str] = str) -> Runnable[str, AIMessageChunk]:
    context = GritRetriever(index=index, k=k) | format_documents | edit
    chat = ChatGritRAG(index=index, mode=mode, max_tokens=12)
    return {"context": context, "question": RunnablePassthrough()} | PROMPT | chat


def ask(index: Index, chain: Runnable[str, AIMessageChunk], question: Question, k: int) -> Run:
    start, first, whole = perf_counter(), 0.0, AIMessageChunk("")
    for chunk in chain.stream(question.question):
        first = first or perf_counter() - start
        whole += chunk
    found = GritRetriever(index=index, k=k).invoke(question.question)
    tokens = sum(len(index.model.document_token_ids(d)) for d in index.get([str(d.id) for d in found]))
    return Run(first, whole.usage_metadata["input_token_details"]["cache_read"] / tokens, whole.text)


def edit_passage(index: Index, question: Question) -> Callable[[str], str]:
    """The first letter of the passage that answers becomes another."""
    (passage,) = index.get([question.document_id])
    return lambda text: text.replace(passage.text, f"Q{passage.text[1:]}")


def main(index: Index, k: int = 24, rounds: int = 5) -> list[float]:
    """Print the table; return the ratios of seconds without states to seconds with them."""
    ratios = []
    chains = [make_chain(index, k, mode) for mode in ("doc-query", "doc-cache")]
    ask(index, chains[1], questions()[0], k)  # the first call of a process pays for allocations
    for question in questions()[:rounds]:
        read, reused = (ask(index, chain, question, k) for chain in chains)
        ratios.append(read.seconds / reused.seconds)
        print(f"{read.seconds:7.2f} s  {reused.seconds:6.2f} s  {ratios[-1]:5.1f}x  {reused.reused:.0%} reused")
    print(f"first token {median(ratios):.1f} times sooner over {k} documents a question (median of {rounds})\n")
    question = questions()[7]
    for name, edit in (("as it is", str), ("one letter edited", edit_passage(index, question))):
        run = ask(index, make_chain(index, 4, "doc-cache", edit), question, 4)
        right = "right" if is_right(run.text, question.answers) else "wrong"
        print(f"{name:18} {run.reused:.0%} reused  {run.text!r}: {right}")
    return ratios


if __name__ == "__main__":
    model = GritModel.from_pretrained()
    with tempfile.TemporaryDirectory() as scratch, Index.create(f"{scratch}/index", model=model) as index:
        index.add(documents(), show_progress_bar=True)
        main(index, *map(int, sys.argv[1:]))
