"""What flows between the parts (`vector`), the step that puts them together (`run`), its randomness and its tape."""
