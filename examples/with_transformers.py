"""A model that ``transformers`` has loaded writes its text speculatively: ``python examples/with_transformers.py``."""

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from eagle import speculative_generate
from eagle.assets import resolve_base

# The embedded pair; meta-llama/Llama-3.1-8B-Instruct and yuhuili/EAGLE3-LLaMA3.1-Instruct-8B do as well.
BASE, HEAD = resolve_base("smollm2-135m"), "smollm2-135m"

tokenizer = AutoTokenizer.from_pretrained(BASE)
model = AutoModelForCausalLM.from_pretrained(BASE, dtype="auto").eval()
chat = [{"role": "user", "content": "Why is the sky blue? Answer in one sentence."}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True).input_ids
model.generate(
    ids,
    custom_generate=speculative_generate,
    ea_model_path=HEAD,
    hsd=True,
    do_sample=True,
    temperature=0.7,
    max_new_tokens=48,
    streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
)
