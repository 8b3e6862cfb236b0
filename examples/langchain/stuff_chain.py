"""The plain chain of every tutorial: retrieve, stuff, answer. Nothing in it knows of states, and all are reused.

python examples/langchain/stuff_chain.py
"""

import tempfile

from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough

from gritrag import GritModel, Index
from gritrag.corpus import documents
from gritrag.langchain import ChatGritRAG, GritRetriever

QUESTION = "What nickname did the reliable borer of the Harrowick road tunnel have?"

PROMPT = ChatPromptTemplate.from_template(
    "Answer the question from the following context only.\n\n{context}\n\nQuestion: {question}"
)


def format_documents(found: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in found)


def make_chain(index: Index, k: int = 4) -> Runnable[str, AIMessage]:
    context = GritRetriever(index=index, k=k) | format_documents
    chat = ChatGritRAG(index=index, max_tokens=16)
    return {"context": context, "question": RunnablePassthrough()} | PROMPT | chat


def main(index: Index) -> AIMessage:
    answer = make_chain(index).invoke(QUESTION)
    print(f"{QUESTION}\n{answer.text}\n")
    print(f"{answer.usage_metadata['input_tokens']} tokens of prompt: {answer.usage_metadata['input_token_details']}")
    return answer


if __name__ == "__main__":
    model = GritModel.from_pretrained()
    with tempfile.TemporaryDirectory() as scratch, Index.create(f"{scratch}/index", model=model) as index:
        index.add(documents()[:12])
        main(index)
