"""Chat templates by name, and the one that most models have: Jinja, as `transformers` renders it.

The names are mergekit's, the formats those that the models were published with: between the turns of Llama 3 and EXAONE
stands no white space that mergekit's files leave there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

TEMPLATES = {
    "alpaca": """
{%- for m in messages %}
{%- if m.role == 'system' %}{{ m.content | trim }}
{%- else %}{{ {'user': '### Instruction:', 'user_context': '### Input:', 'assistant': '### Response:'}[m.role] }}
{{ m.content | trim }}
{%- endif %}
{%- if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}""",
    "chatml": """
{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "exaone": """
{%- if messages[0].role != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}
{%- for m in messages %}{{ '[|' ~ m.role ~ '|]' ~ m.content ~ ('\\n' if m.role == 'user' else '[|endofturn|]\\n') }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}""",
    "llama3": """
{{- bos_token }}
{%- for m in messages %}
{{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ m.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "mistral": """
{{- bos_token }}
{%- set first = 1 if messages[0].role == 'system' else 0 %}
{%- for m in messages[first:] %}
{%- if m.role != ('user', 'assistant')[loop.index0 % 2] %}
{{- raise_exception('after a system message, if any, user and assistant take turns, the user first') }}
{%- elif m.role == 'user' %}
{{- ' [INST] ' ~ (messages[0].content ~ '\\n\\n' if first and loop.first else '') ~ m.content ~ ' [/INST]' }}
{%- else %}{{ ' ' ~ m.content ~ eos_token }}
{%- endif %}
{%- endfor %}""",
}


def most_common(templates: Iterable[str | None]) -> str | None:
    """The template that most models have (the first of equals); None where none has one."""
    found = Counter(t.strip() for t in templates if t)
    return found.most_common(1)[0][0] if found else None
