"""Long HotpotQA: a question after many documents."""
