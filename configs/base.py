"""Every field of a run, with the paper's value as default where the paper gives one. Other configs change some of them.

Not a run of its own: see tiny.py (a laptop, minutes) and hotpotqa.py (real weights and questions).
"""

from ml_collections import ConfigDict

from agemem_jax.config import refuse


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.name = "base"
    c.seed = 0
    c.num_seeds = 1  # seeds seed, seed + 1, ... are trained one after another; the table needs 3

    # What acts. With `weights` (a .safetensors file or index, a Hugging Face folder, or a .gguf file) the architecture
    # fields come from the file; without, a fresh policy of these sizes is made.
    c.policy = ConfigDict()
    c.policy.weights = ""  # a relative path begins in the current folder; ~ is the home folder
    c.policy.tokenizer = ""  # "" = the one in `weights`; a sentencepiece .model, a tokenizer.json, or a folder
    c.policy.date_string = "26 Jul 2024"  # what a chat template prints as today's date (Llama 3.1 and 3.2 do)
    c.policy.vocab_size = 0  # 0 = the tokenizer's
    c.policy.hidden_size = 128
    c.policy.intermediate_size = 384
    c.policy.num_layers = 4
    c.policy.num_heads = 4
    c.policy.num_kv_heads = 2
    c.policy.head_dim = 32
    c.policy.qkv_bias = False  # Qwen2/2.5: True
    c.policy.qk_norm = True  # Qwen3: True
    c.policy.tie_word_embeddings = True
    c.policy.rope_theta = 10000.0
    c.policy.rms_norm_eps = 1e-6
    c.policy.dtype = "float32"  # of activations and the KV cache; "bfloat16", or to evaluate only "float16"
    # "bfloat16": without LoRA the optimizer works on a float32 copy. "float16": only with LoRA, or to evaluate.
    c.policy.param_dtype = "float32"
    c.policy.remat = "none"  # what the backward pass runs again: "minimal" = not the matmuls, "full" = whole layers
    c.policy.attention = "xla"  # "xla", "splash" (TPU) or "cudnn" (GPU): of many queries; decoding is always "xla"
    c.policy.query_block = 0  # of "xla": so many queries at a time, for contexts of thousands of tokens; 0 = all
    c.policy.scan_layers = False  # decode in a loop over layers: compiles faster, for TPUs (CPUs, GPUs: copies layers)

    # LoRA: with a rank, adapters on these projections are trained (float32) and the policy itself stays as it is; it is
    # also the reference. Adapters take a larger optim.learning_rate than all parameters do.
    c.policy.lora_rank = 0  # 0 = all parameters are trained; at most the smaller side of each projection
    c.policy.lora_alpha = 16.0  # adapters count alpha / rank times
    c.policy.lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    # The turn format: <think>, then calls, or a task action.
    c.tools = ConfigDict()
    c.tools.format = "paper"  # "paper" (one JSON array of calls) or "hermes" (Qwen's own: one block for each call)
    c.tools.constrained = True  # False: free sampling; a malformed turn is an observation and a penalty
    c.tools.enabled = (
        "Add_memory",
        "Update_memory",
        "Delete_memory",
        "Retrieve_memory",
        "Summary_context",
        "Filter_context",
    )
    c.tools.turn = "either"  # "either" (the paper: calls or a task action) or "both" (calls, then a task action)
    c.tools.action_tag = "answer"  # task actions are <answer> (questions) or <action>
    # What an action may say: "free" text, or the "language" of the benchmark, its verbs and names; constrained only.
    c.tools.actions = "free"
    c.tools.action_brief = ""  # what the system prompt says of these actions: the commands that the task knows
    c.tools.max_calls = 3  # calls in one turn
    c.tools.min_calls = 1  # 0 also admits a turn without a call: an empty array; in "hermes", the think block alone
    c.tools.max_tags = 2  # pairs in metadata and in metadata_filter
    c.tools.max_top_k = 5
    c.tools.default_top_k = 3
    c.tools.think = True  # False: the think block is always empty
    c.tools.body_tokens = 0  # of a turn's budget, that thinking leaves for the calls or answer; constrained only
    c.tools.optional_arguments = True  # memory_type, metadata, metadata_filter, top_k may be written
    c.tools.summary_by = "policy"  # "policy": a generation slot of its own; "call": the call carries the text

    # Devices: their number is the product; -1 takes what the others leave. Rows are cut over data and fsdp, parameters
    # and optimizer state are stored over fsdp and tensor.
    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1  # must divide the policy's width
    c.mesh.tensor = 1  # tensor parallelism of the rollout; must divide heads, key-value heads, MLP width, vocabulary
    c.mesh.learner = "fsdp"  # the update: "fsdp" (rows over all devices, layers gathered) or "tensor" (as the rollout)

    # Long-term memory.
    c.store = ConfigDict()
    c.store.entries = 64
    c.store.entry_tokens = 64
    c.store.tag_tokens = 8
    # A text that says the same again, but for case, spaces and punctuation: "refuse" (status DUPLICATE) or "add".
    c.store.duplicates = "refuse"
    # Tables of tokens: "lexical" (idf-weighted random projection), "policy" (frozen token embeddings). A decoder reads:
    # "policy_hidden" (states of the frozen starting policy: the reference of rl.kl_coef, or what LoRA is beside; where
    # there is neither, a copy of its first layers is kept), "model" (an embedding model with the policy's vocabulary).
    c.store.encoder = "lexical"
    c.store.embedding_size = 256  # of the lexical encoder
    c.store.encoder_layer = 0  # "policy_hidden": the layer whose output is taken; 0 = the last one's, normalised
    c.store.encoder_pooling = "mean"  # "policy_hidden": "mean" of the text's tokens or "last" token
    c.store.encoder_weights = ""  # "model": as policy.weights; its last token is the vector, whole on every device
    # "model": before queries, as the model was trained with; entries have none. This is Qwen3-Embedding's.
    c.store.encoder_instruction = (
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
    )
    # Cosine below which RETRIEVE finds nothing. HotpotQA's questions, lexical: 7 % of other questions' sentences reach
    # 0.1, and so does every question's best supporting sentence; 16 % of all supporting sentences do not. With "policy"
    # of a real model nearly everything is above 0.4, and more so where a decoder reads.
    c.store.min_score = 0.1

    # Short-term memory.
    c.context = ConfigDict()
    c.context.limit = 8192  # T_max, tokens, the shared prompt included
    # Tokens a row can hold beside the prompt; past it the oldest messages go. Prompt and capacity together must fit the
    # positions that the model was made for.
    c.context.capacity = 10240
    # Share of the capacity (and of the table of messages) that is still used, the turn to come with it, when the oldest
    # messages have gone: each time they go costs a segment. 1 = only as many go as have to.
    c.context.low_water = 0.75
    c.context.messages = 64  # at a time: a turn makes up to 3, a summary 2 more
    c.context.filter_threshold = 0.6  # theta
    c.context.pin_query = True
    # Of a row: first context + edits in stage 1, the same again in stages 2 and 3. Overflow edits too, and half of the
    # edits are kept for it. A row that has none left ends where its context is full (metric stop_segments). Unused ones
    # cost memory, and no time.
    c.context.max_segments = 4

    # The task: records of a benchmark into three stages.
    c.task = ConfigDict()
    c.task.benchmark = "hotpotqa"  # a folder of agemem_jax/benchmarks
    c.task.parts = ()  # of the benchmark: PDDL's domains, BabyAI's levels, ScienceWorld's tasks; () = all
    c.task.official = False  # True: nothing is told in stages 1 and 2, as the benchmark was published
    c.task.labels_path = ""  # AgentBoard's label file of BabyAI, data/babyai/test.jsonl: with official, its progress
    # HotpotQA records in either published layout: a JSON or JSON lines file, also gzipped, or tfds:NAME:SPLIT@FOLDER, a
    # prepared tfds data set (data/files.py). "" = questions generated from `task.seed`.
    c.task.path = ""
    # Files of their own for the validation split (train.eval_every) and the test split (the evaluations before and
    # after). "" = a fraction of `path`. What is in a later split is left out of an earlier one.
    c.task.validation_path = ""
    c.task.test_path = ""
    c.task.validation_fraction = 0.1  # of the records of `path`, those before the test split
    c.task.test_fraction = 0.2  # the last ones
    c.task.seed = 0
    c.task.lowest_level = 1  # of PDDL's generated problems (benchmarks/pddl/generators.py), the highest one included
    c.task.highest_level = 2
    c.task.train_size = 4096  # generated questions
    # Their kinds (benchmarks/hotpotqa/questions.py), each by its share of any sum. They fill the store and more
    # than fill a context only where store.entries, task.distractors and context.capacity are as small as in
    # configs/tiny.py.
    c.task.share_recall = 1.0  # what was told is asked for
    c.task.share_changed = 1.0  # facts change
    c.task.share_closed = 1.0  # topics are taken back, and somebody else speaks
    c.task.share_misled = 1.0  # long talk about one wrong subject
    c.task.share_bids = 1.0  # what only a summary keeps
    c.task.share_split = 1.0  # one hop in the store, one in the context
    c.task.validation_size = 256
    c.task.test_size = 512
    # Of a file's records: the share of which a changed copy of a supporting fact is told before the true one, and the
    # share told by somebody else than who asks, so that the answer is "unknown". Of worlds: the share of the tasks in
    # which something that was told changes before stage 1 ends.
    c.task.revised = 0.0
    c.task.strangers = 0.0
    c.task.facts = 8  # stage-1 messages: the gold facts first chosen, then distracting ones and chatter
    c.task.chatter = 0  # of these, messages with no fact at all
    c.task.distractors = 4  # stage-2 messages
    c.task.chunk_tokens = 64  # of conversations and documents (benchmarks/conversations.py) that a message tells
    c.task.documents = 50  # of long_hotpotqa: those of the record among others'
    c.task.message_tokens = 64  # longer messages, questions and supporting facts are cut, and counted
    c.task.answer_tokens = 16  # longer gold answers are cut, and counted
    c.task.seen_tokens = 0  # of an environment's answer to a task action, at most; 0 of questions, which give none
    c.task.auto_top_k = 3  # stage 1: entries put before the agent with each message; 0 = none
    c.task.auto_min_score = 0.0  # cosine below which automatic retrieval shows nothing
    c.task.owners = 1  # rows are spread over this many owners

    c.rollout = ConfigDict()
    c.rollout.action_tokens = 2048  # generated in one turn, think included
    c.rollout.summary_tokens = 256
    c.rollout.stage1_extra_turns = 0  # turns after the last message
    c.rollout.stage2_extra_turns = 0
    c.rollout.stage3_turns = 6  # N_max of stage 3
    c.rollout.stage1_answer_ends = True  # the paper: an answer ends stage 1 early; False: answers are not allowed there
    c.rollout.summary_slots = 2  # generation slots a stage may spend on summaries
    c.rollout.temperature = 1.0
    c.rollout.prefill_chunk = 256
    c.rollout.prefill_rows = 0  # rows of a prefill chunk after the first, those that need most; 0, several devices: all
    c.rollout.history_widths = 1  # the decode loop is compiled for so many context lengths, and runs on the shortest
    # Tokens of a row in one step of decoding: its last one, and those that the grammar forces or that go on with a copy
    # of what it has read. What is written stays the same. 1 = one at a time, which is best where little is forced.
    c.rollout.decode_width = 1

    # Rewards: R = w . (task, context, memory) + penalties. A weight of 0 switches a term off; every term has its curve.
    c.reward = ConfigDict()
    # "strict": preventive, storage and maintenance pay for what is there in the end; "paper": for calls that succeeded,
    # as published (agemem_jax/rl/rewards.py).
    c.reward.terms = "strict"
    c.reward.task = 1.0
    c.reward.context = 1.0
    c.reward.memory = 1.0
    c.reward.task_metric = "progress"  # "progress", "success" or "judge" (host judge)
    c.reward.no_answer = -1.0
    c.reward.compression = 1 / 3  # within context
    c.reward.preventive = 1 / 3
    # 1/3 in the paper, whose term is always 1 with context.pin_query. The strict one is of what generated questions
    # tell in stage 2; of a file's records, which tell nothing there that is asked for, it is always 1.
    c.reward.preservation = 0.0
    c.reward.storage = 1 / 3  # within memory
    c.reward.maintenance = 1 / 3
    c.reward.relevance = 1 / 3
    c.reward.over_turns = -1.0  # penalties
    c.reward.over_context = -0.5
    c.reward.malformed = -0.1  # a turn, unconstrained only
    c.reward.good_entry = 0.6  # token overlap with a gold fact from which an entry counts as high quality; above 0
    # With task_metric "judge": base URL of an OpenAI-compatible endpoint, without a login (OPENAI_API_KEY in the
    # environment is sent along), and a model that it serves. An answer without a verdict gets 0 (metric judge_failed).
    c.reward.judge = ""
    c.reward.judge_model = ""

    # Memory systems of others that AgeMem is compared with (agemem_jax/methods/), each list and answer bounded.
    c.methods = ConfigDict()
    c.methods.facts = 4  # Mem0: most facts or memories of a message
    c.methods.events = 6  # most of a decision
    c.methods.neighbours = 5  # memories that a fact is compared with; twice as many for a whole message
    c.methods.recent = 10  # earlier messages in view of mem0_additive
    c.methods.contradiction_adds = False  # mem0_classic: stores the fact for which a memory was deleted; not published
    c.methods.keywords = 4  # A-Mem: most of a note
    c.methods.tags = 4
    c.methods.word_tokens = 8  # of a keyword or tag; longer ones are cut, as longer contexts are
    c.methods.context_tokens = 48
    c.methods.memory_tokens = 256  # of the one text of memagent
    c.methods.answer_tokens = 512  # of a role's answer

    # What a million tokens cost, in dollars, for the column of experiments/table.py; both 0: there is none. The prompt
    # of a call is all that the policy has before it, cached or not, as an API without a discount bills it.
    c.prices = ConfigDict()
    c.prices.prompt = 0.0
    c.prices.generated = 0.0

    # Step-wise GRPO.
    c.rl = ConfigDict()
    c.rl.schedule = "chained"  # "chained" (paper) or "sequential" (article: each stage trained in turn)
    # Chained: the first so many updates play stage 1 alone, the next so many stages 1 and 2, and train each on its own
    # objective: storage and maintenance, then what is in view (rl/rewards.py: stage_objective).
    c.rl.stage1_updates = 0
    c.rl.stage2_updates = 0
    c.rl.whole_every = 0  # each so many-th of these updates is of all three stages nevertheless; 0 = none
    c.rl.updates = 100  # all together; sequential: split evenly over the three stages
    c.rl.tasks_per_update = 4
    c.rl.group_size = 8
    # "broadcast" (paper), "per_stage", "return_to_go", "turn_to_go", "hindsight" (agemem_jax/rl/advantages.py)
    c.rl.credit = "broadcast"
    c.rl.hindsight = 1.0  # of credit "hindsight": weight of the outcome in turns whose calls had a later effect
    c.rl.advantage_eps = 1e-6
    c.rl.advantage_std = True  # False: Dr.GRPO's, no division by the group's standard deviation
    c.rl.zero_variance = "keep"  # groups of equal reward: "keep" (advantage 0) or "drop" (DAPO: not in the mean)
    c.rl.clip_low = 0.2
    c.rl.clip_high = 0.2
    c.rl.dual_clip = 0.0  # bound of the ratio where the advantage is negative, above 1 (usually 3); 0 = none
    c.rl.kl_coef = 0.1  # beta, to the frozen starting policy; 0 = no reference pass
    # "token", "sequence", "turn" (the paper's mean over experiences) or "constant" (Dr.GRPO: all turns at full length).
    c.rl.loss_average = "token"
    c.rl.epochs = 1
    c.rl.micro_batch = 32  # segments a gradient-accumulation step, of all devices together
    c.rl.logit_chunk = 512  # tokens whose logits exist at once (of each device)
    c.rl.widths = 4  # lengths that micro-batches are cut to; the update is compiled for each

    c.optim = ConfigDict()
    c.optim.learning_rate = 1e-6
    c.optim.warmup_updates = 0  # the rate rises linearly over so many, the last of which has learning_rate in full
    c.optim.weight_decay = 0.0
    c.optim.b1 = 0.9  # below 1
    c.optim.b2 = 0.999  # below 1
    c.optim.max_grad_norm = 1.0

    # Supervised warm start on reading lessons, then on scripted demonstrations (experiments/warm_start.py). With
    # policy.lora_rank adapters are trained beside policy.weights.
    c.warm = ConfigDict()
    c.warm.weights = ""  # what it begins from, as policy.weights, with policy.tokenizer; "" = nothing: a fresh policy
    c.warm.lessons = 0  # steps on lessons
    c.warm.lesson_batch = 32
    c.warm.lesson_tokens = 288  # of a page, in the last quarter of the lessons
    c.warm.lesson_rate = 2.5e-3  # learning rate, of dealings too
    c.warm.dealings = 0  # steps after the lessons, half of whose pages are about calls (benchmarks/hotpotqa/lessons.py)
    c.warm.lesson_every = 0  # while it watches demonstrations, each so many-th step is a lesson; 0 = none
    c.warm.acting = 0  # steps on demonstrations of tasks as `task.official` tells them: all of them is acting
    c.warm.steps = 500  # steps on demonstrations
    c.warm.distractors = 0  # stage-2 messages of a demonstration; 0 = task.distractors. Few: more of it is acting
    c.warm.roles = 0.0  # share of these steps that show the roles of memory systems, which take turns
    c.warm.batch = 128
    c.warm.learning_rate = 1e-3
    c.warm.final_learning_rate = 1.5e-4  # cosine decay to this
    c.warm.warmup_steps = 40  # below steps
    c.warm.weight_decay = 0.01

    c.train = ConfigDict()
    c.train.checkpoint_every = 20  # updates
    c.train.keep_checkpoints = 2
    c.train.eval_every = 0  # updates after which the validation split is played; 0 = no evaluation in between
    c.train.eval_tasks = 512  # at most, of an evaluation: a method, greedy or sampled, or the trained one less a tool
    c.train.baselines = False  # also trains no_memory_rl and store_all_rl, which only answer: three times the updates
    c.train.traces = 8  # trajectories kept for the report at each evaluation
    c.train.transfer_guard = True
    return c


def workstation() -> ConfigDict:
    """Real weights on a machine without an accelerator: what the benchmarks' own configs begin with."""
    c = get_config()
    c.policy.remat = "full"
    c.tools.body_tokens = 80  # thinking ends early enough to tell a fact in full
    c.tools.max_calls = 2
    c.tools.max_tags = 1
    c.tools.max_top_k = 2
    c.tools.default_top_k = 2
    c.store.entries = 16
    c.task.auto_top_k = 1
    c.task.auto_min_score = 0.2
    c.rollout.action_tokens = 112
    c.rollout.summary_tokens = 64
    c.rollout.stage1_answer_ends = False
    c.rollout.summary_slots = 1
    c.rollout.prefill_chunk = 64
    # A real vocabulary spells a call in dozens of tokens, and what is stored was just read. More columns cost more than
    # they save on CPU cores.
    c.rollout.decode_width = 4
    c.rl.updates = 3
    c.rl.tasks_per_update = 1
    c.rl.group_size = 4
    c.rl.kl_coef = 0.0  # a reference would need a second copy of the weights
    c.rl.micro_batch = 4  # the prompt, longer than most segments, runs once for them
    c.rl.logit_chunk = 256
    c.train.eval_tasks = 4
    c.train.traces = 4
    c.train.checkpoint_every = 3
    return c


def conversations() -> ConfigDict:
    """What benchmarks of long conversations and texts have in common: all is tested, nothing trained."""
    c = workstation()
    c.store.entries = 256
    c.store.entry_tokens = 96
    c.task.validation_fraction = 0.0
    c.task.test_fraction = 1.0
    c.task.distractors = 1
    c.task.chunk_tokens = 512
    c.task.message_tokens = 512
    c.context.limit = 6144
    c.context.capacity = 4608  # without the system prompt, which is shared
    c.rollout.stage3_turns = 3
    c.rl.updates = 0
    return c


def is_tiny(name: str, variant: str) -> bool:
    """Whether configs/NAME.py is asked for its small policy. Raises ConfigError for a variant that there is not."""
    if variant not in ("", "tiny"):
        refuse("config", f"{name}.py:{variant}", f"there is one variant, 'tiny': configs/{name}.py:tiny")
    return variant == "tiny"
