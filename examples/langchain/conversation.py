"""A conversation over documents: each turn retrieves, and the history travels with the question.

The documents of a turn are content blocks between history and question, so they keep title and id on their way to the
model, and what was retrieved twice is read once.

    python examples/langchain/conversation.py
"""

import tempfile
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

from gritrag import GritModel, Index
from gritrag.corpus import documents
from gritrag.langchain import ChatGritRAG, GritRetriever, docs_to_messages

TURNS = ["What nickname did the reliable borer of the Harrowick road tunnel have?", "And how many people did it need?"]

PROMPT = ChatPromptTemplate(
    [
        ("system", "Answer with a few words from the documents."),
        ("placeholder", "{history}"),
        ("placeholder", "{documents}"),
        ("human", "{question}"),
    ]
)


def search_words(turn: dict[str, Any]) -> str:
    """A follow-up says little by itself: it is searched together with what was asked before."""
    asked = [message.text for message in turn["history"] if message.type == "human"]
    return " ".join([*asked[-1:], turn["question"]])


def make_chain(index: Index) -> Runnable[dict[str, Any], AIMessage]:
    retrieve = RunnableLambda(search_words) | GritRetriever(index=index, k=2) | docs_to_messages
    return RunnablePassthrough.assign(documents=retrieve) | PROMPT | ChatGritRAG(index=index, max_tokens=16)


def main(index: Index) -> list[AIMessage]:
    chain = make_chain(index)
    history: list[BaseMessage] = []
    for question in TURNS:
        answer = chain.invoke({"question": question, "history": history})
        history += [HumanMessage(question), answer]
        print(f"> {question}\n{answer.text}   {answer.usage_metadata['input_token_details']}\n")
    return [message for message in history if isinstance(message, AIMessage)]


if __name__ == "__main__":
    model = GritModel.from_pretrained()
    with tempfile.TemporaryDirectory() as scratch, Index.create(f"{scratch}/index", model=model) as index:
        index.add(documents()[:12])
        main(index)
