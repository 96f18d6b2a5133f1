"""The agent: a data owner's process, its terms, its training, its receipts."""
