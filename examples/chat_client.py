"""OpenAI's client talks to this package's server: ``python -m eagle.serving`` in one terminal, this in another.

python examples/chat_client.py [URL]
"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=url, api_key="none")
question = {"role": "user", "content": "Name three colours."}
stream = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[question],
    temperature=0.7,
    max_tokens=48,
    stream=True,
    stream_options={"include_usage": True},
    # Not OpenAI's: how the text is drafted and verified.
    extra_body={"method": "hsd"},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    elif chunk.usage is not None:
        details = chunk.usage.completion_tokens_details
        accepted = details.accepted_prediction_tokens if details else None
        print(f"\n({chunk.usage.completion_tokens} tokens, {accepted} of them drafted)")
