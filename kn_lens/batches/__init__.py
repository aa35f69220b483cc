"""Batches that lose nothing: a method of the package over many prompts, from one file, piece by piece.

``run_file`` → ``config`` → ``plan`` (``source``, ``prompt_table``) → ``run`` hands pieces to ``engines`` → ``task``
computes one by its ``methods`` → ``storage`` keeps it → ``read``, ``status``, ``export``.
"""
