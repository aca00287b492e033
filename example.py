"""Load the default pair, ask it a question, print its answer."""

from eagle.model.ea_model import EaModel

model = EaModel.from_pretrained()
tokenizer = model.get_tokenizer()
chat = [{"role": "user", "content": "Why is the sky blue?"}]
encoded = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output_ids = model.eagenerate(encoded.input_ids.to(model.device), hsd=True, temperature=1.0, max_new_tokens=200)
print(tokenizer.decode(output_ids[0, encoded.input_ids.shape[1] :], skip_special_tokens=True))
