"""The maze demo, `python -m experiments.demo`: trains a recurrent network in about a minute and shows what it has learnt."""
