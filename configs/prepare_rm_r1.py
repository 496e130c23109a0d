"""The training mixture of RM-R1, as published.

Command:
    rmr1 prepare --config=prepare_rm_r1 --output=data/rm_r1

Three sources from the Hugging Face hub: Math-Step-DPO-10K, 8,000 of Code-Preference-Pairs, and
Skywork-Reward-Preference-80K-v0.2 without magpie_ultra. Chosen responses alternate between A and B,
counted through the sources in this order. 12 % are set apart for distillation. The published script
neither removed duplicates nor held out a validation split, and no more does this recipe; a mixture
to evaluate with wants --exact_duplicates=true --near_duplicates=0.9 --validation=0.02 and
--against=FILES of the benchmarks. Two things differ from the script: the name of Chatbot B is
spelt the same whoever wins, so the prompt does not give the label away, and pairs of identical
responses are dropped.

Hardware: any machine with the network and a few GB of disk; not yet run.
Expected result: 72,983 records, less any with identical responses: 64,226 to train on and 8,757 for
distillation.
"""

from rmr1_jax.config import PrepareConfig, Source

config = PrepareConfig(
    output="data/rm_r1",
    sources=(Source("math"), Source("code"), Source("skywork")),
    balance="alternate",
    validation=0.0,
    distillation=0.12,
    exact_duplicates=False,
    near_duplicates=0.0,
)
