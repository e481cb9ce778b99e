"""Answers to hard samples: the large model in a worker process, every answer kept with its picture."""
