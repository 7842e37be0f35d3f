"""Whether HTML is whole."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "wbr"}


class Reading(HTMLParser):
    """Open tags that are never closed, or closed in the wrong order, and every attribute."""

    def __init__(self, text):
        super().__init__()
        self.open, self.wrong, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.texts.append(data)
