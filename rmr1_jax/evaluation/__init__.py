"""Judging the judge: benchmarks in, records of every judgement, scores and a report out."""
