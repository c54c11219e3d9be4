# SPDX-License-Identifier: GPL-2.0-or-later
"""What the demo embeds: each sentence of the first batch has one in the second that means the same."""

FIRST = (
    "A cat is asleep on the sofa.",
    "The government raised taxes again this year.",
    "How do I install a new graphics card?",
    "She plays the violin in an orchestra.",
    "The recipe needs two eggs and a cup of flour.",
    "It will rain heavily tomorrow afternoon.",
    "The spacecraft landed safely on Mars.",
    "He broke his leg while skiing.",
)

SECOND = (
    "A probe has touched down on the red planet.",
    "Mix a cup of flour with a couple of eggs.",
    "A kitten naps on the couch.",
    "What are the steps to put a GPU into my computer?",
    "A winter sports accident left him with a fractured leg.",
    "People have to pay more tax than last year.",
    "The forecast says there will be a downpour tomorrow.",
    "Her instrument is the violin, and she performs with a symphony.",
)

PAIRS = (2, 5, 3, 7, 1, 6, 0, 4)
"""PAIRS[i] is the sentence of SECOND that means what FIRST[i] means."""
