"""Three documents and a question that one of them answers, for tests of answering."""

from gritrag import Document

DOCUMENTS = [
    Document("The ferry leaves at noon.", id="a", title="Ferry", metadata={"year": 1}),
    Document("A bridge of rope was built over the gorge.", id="b", metadata={"year": 2}),
    Document("Goats eat the red moss.", id="c", metadata={"year": 3}),
]
QUESTION = "When does the ferry leave?"
