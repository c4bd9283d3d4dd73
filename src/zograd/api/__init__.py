"""Entry points: the same method behind a function, a loop of questions and a torch optimizer."""
