"""RM-R1's distillation set: 8,753 traces by two teachers in two passes.

Command:
    rmr1 synthesize --config=synthesize_rm_r1 \
        --input=data/rm_r1 --output=data/rm_r1_traces

data/rm_r1 is a directory that `rmr1 prepare` made; its split `distillation` is used. The keys are
read from ANTHROPIC_API_KEY and OPENAI_API_KEY. As published this goes through the vendors' batch
APIs, at half the price: the same command with --batch=write, then --batch=read, then both once more
for pass 2. --max_requests and --max_tokens bound what it may cost.

Both models have dates in their names and end with their vendors' support for them; any other does
as well, with --teacher1.model and --teacher2.model.

Hardware: none but a network; not yet run against the vendors.
Expected result: pass 1 accepts about 75 % (paper, section 3), and of 8,757 pairs 8,753 have a trace
in the end (released RM-R1-Distill-SFT). The checks of pass 2 here are stricter than the published
ones, which only look at the verdict of pass 1.
"""

from rmr1_jax.config import SynthesizeConfig, TeacherConfig

config = SynthesizeConfig(
    prompt="chain_of_rubrics",
    teacher1=TeacherConfig(kind="anthropic", model="claude-3-7-sonnet-20250219"),
    # Not published: o3's limit. Its hidden reasoning counts, so it has more room.
    teacher2=TeacherConfig(kind="openai", model="o3-2025-04-16", max_new_tokens=16384),
)
