"""HotpotQA, and questions in its record layout."""
