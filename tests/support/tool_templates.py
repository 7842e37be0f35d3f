"""Small chat templates of model families, written for tests after what each family publishes: how a turn is
marked, how tools are announced, how calls and their results are written."""

from __future__ import annotations

CHATML = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.role == 'assistant' %}<|im_start|>assistant
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}{% for call in m.tool_calls or [] %}
CALLS{% endfor %}<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

QWEN_JSON = CHATML.replace(
    "CALLS",
    """<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>""",
)
QWEN_XML = CHATML.replace(
    "CALLS",
    """<tool_call>
<function={{ call.function.name }}>
{% for key, value in call.function.arguments.items() %}<parameter={{ key }}>
{{ value if value is string else value | tojson }}
</parameter>
{% endfor %}</function>
</tool_call>""",
)
GLM = CHATML.replace(
    "CALLS",
    """<tool_call>{{ call.function.name }}
{% for key, value in call.function.arguments.items() %}<arg_key>{{ key }}</arg_key>
<arg_value>{{ value if value is string else value | tojson }}</arg_value>
{% endfor %}</tool_call>""",
)
OPENS_THINKING = QWEN_JSON.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n", "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
)
LLAMA = """{{ '<|begin_of_text|>' }}{%- if tools %}<|start_header_id|>system<|end_header_id|>

{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|eot_id|>{% endif %}{%- for m in messages %}
{%- if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>

{{ m.content }}<|eot_id|>
{%- elif m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one tool call at a time') }}{% endif %}
{%- set call = m.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>
{%- else %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content }}<|eot_id|>
{%- endif %}{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
PYTHON_VALUE = """{%- macro python(value) %}{% if value is true %}True{% elif value is false %}False
{%- elif value is none %}None{% elif value is mapping %}{{ '{' }}{% for k, v in value.items() %}{{ k | tojson }}: {{ python(v) }}
{%- if not loop.last %}, {% endif %}{% endfor %}{{ '}' }}{% elif value is iterable and value is not string %}[{% for v in value %}{{ python(v) }}
{%- if not loop.last %}, {% endif %}{% endfor %}]{% else %}{{ value | tojson }}{% endif %}{% endmacro %}"""
PYTHON_CALL = """{{ call.function.name }}({% for k, v in call.function.arguments.items() %}{{ k }}={{ python(v) }}
{%- if not loop.last %}, {% endif %}{% endfor %})"""
LLAMA_PYTHON = (
    PYTHON_VALUE
    + LLAMA[: LLAMA.index("{%- elif m.tool_calls %}")]
    + """{%- elif m.tool_calls %}<|start_header_id|>assistant<|end_header_id|>

<|python_start|>[{% for call in m.tool_calls %}"""
    + PYTHON_CALL
    + """{% if not loop.last %}, {% endif %}{% endfor %}]<|python_end|><|eot_id|>
"""
    + LLAMA[LLAMA.index("{%- else %}<|start_header_id|>{{ m.role }}") :]
)
OLMO = PYTHON_VALUE + CHATML.replace(
    "\n{% if m.reasoning_content %}", "\n{% if m.reasoning_content %}"
).replace(
    "{% for call in m.tool_calls or [] %}\nCALLS{% endfor %}",
    "{% if m.tool_calls %}<function_calls>{% for call in m.tool_calls %}"
    + PYTHON_CALL
    + "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}</function_calls>{% endif %}",
)
MISTRAL_OLD = """{{ '<s>' }}{%- if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' or m.role == 'system' %}[INST] {{ m.content }}[/INST]
{%- elif m.role == 'tool' %}[TOOL_RESULTS] {"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]
{%- elif m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}
{%- if not loop.last %}, {% endif %}{% endfor %}]</s>
{%- else %} {{ m.content }}</s>{% endif %}{% endfor %}"""
MISTRAL_NEW = """{{ '<s>' }}{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]
{%- elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]
{%- else %}{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ call.function.arguments | tojson }}{% endfor %}</s>{% endif %}{% endfor %}"""
DEEPSEEK_V3 = """{{ '<｜begin▁of▁sentence｜>' }}{% for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}{%- for m in messages %}
{%- if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'tool' %}<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜><｜tool▁outputs▁end｜>
{%- elif m.content is none %}<｜Assistant｜><｜tool▁calls▁begin｜>{% for call in m.tool_calls %}<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ call.function.name }}
```json
{{ call.function.arguments + '' }}
```<｜tool▁call▁end｜>{% if not loop.last %}
{% endif %}{% endfor %}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>
{%- else %}<｜Assistant｜>{{ m.content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<｜Assistant｜>{% endif %}"""
DEEPSEEK_V31 = (
    DEEPSEEK_V3.replace("function<｜tool▁sep｜>{{ call.function.name }}\n```json\n", "{{ call.function.name }}<｜tool▁sep｜>")
    .replace("\n```<｜tool▁call▁end｜>", "<｜tool▁call▁end｜>")
    .replace("m.content is none", "m.tool_calls")
    .replace("{{ call.function.arguments + '' }}", "{{ call.function.arguments | tojson }}")
    .replace("<｜Assistant｜><｜tool▁calls▁begin｜>", "<｜Assistant｜>{{ m.content or '' }}<｜tool▁calls▁begin｜>")
)
GPT_OSS = """{% if tools %}<|start|>developer<|message|>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|end|>{% endif %}{%- for m in messages %}
{%- if m.role == 'tool' %}<|start|>functions.{{ m.name }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>
{%- elif m.role == 'assistant' %}
{%- if m.reasoning_content %}<|start|>assistant<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|>{% endif %}
{%- if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one tool call at a time') }}{% endif %}
{%- if m.content %}<|start|>assistant<|channel|>commentary<|message|>{{ m.content }}<|end|>{% endif %}
{%- set call = m.tool_calls[0].function %}<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>{{ call.arguments | tojson }}<|call|>
{%- else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}
{%- else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""
GEMMA_VALUE = """{%- macro gemma(value) %}{% if value is string %}<escape>{{ value }}<escape>{% elif value is mapping %}{{ '{' }}
{%- for k, v in value.items() %}{{ k }}:{{ gemma(v) }}{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}
{%- elif value is iterable %}[{% for v in value %}{{ gemma(v) }}{% if not loop.last %},{% endif %}{% endfor %}]{% else %}{{ value | tojson }}{% endif %}{% endmacro %}"""
GEMMA = (
    GEMMA_VALUE
    + """{{ '<bos>' }}{% if tools %}<start_of_turn>developer
{% for tool in tools %}<start_function_declaration>{{ tool | tojson }}<end_function_declaration>{% endfor %}<end_of_turn>
{% endif %}{%- for m in messages %}
{%- if m.role == 'tool' %}<start_of_turn>developer
<start_function_response>response:{{ m.name }}{{ gemma({'value': m.content}) }}<end_function_response><end_of_turn>
{% elif m.role == 'assistant' %}<start_of_turn>model
{{ m.content }}{% for call in m.tool_calls or [] %}<start_function_call>call:{{ call.function.name }}{{ gemma(call.function.arguments) }}<end_function_call>{% endfor %}<end_of_turn>
{% else %}<start_of_turn>{{ m.role }}
{{ m.content }}<end_of_turn>
{% endif %}{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
)
PHI = """{% if tools %}<|system|><|tool|>{{ tools | tojson }}<|/tool|><|end|>{% endif %}{%- for m in messages %}
{%- if m.tool_calls %}<|assistant|>{{ m.content }}<|tool_call|>[{% for call in m.tool_calls %}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]<|/tool_call|><|end|>
{%- else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
GRANITE = """{% if tools %}<|start_of_role|>tools<|end_of_role|>{{ tools | tojson }}<|end_of_text|>
{% endif %}{%- for m in messages %}
{%- if m.tool_calls %}<|start_of_role|>assistant<|end_of_role|>{{ m.content }}<|tool_call|>[{% for call in m.tool_calls %}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]<|end_of_text|>
{% else %}<|start_of_role|>{{ 'tool_response' if m.role == 'tool' else m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"""
COMMAND = """{{ '<BOS_TOKEN>' }}{% if tools %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ tools | tojson }}<|END_OF_TURN_TOKEN|>{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>{{ m.content | tojson }}<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>
{%- elif m.role == 'assistant' %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% if m.reasoning_content %}<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>{% endif %}
{%- if m.tool_calls %}<|START_ACTION|>[{% for call in m.tool_calls %}{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]<|END_ACTION|>
{%- else %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>
{%- else %}<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ m.content }}<|END_OF_TURN_TOKEN|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"""
KIMI = """{% if tools %}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{% endif %}{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_system|>tool<|im_middle|>{{ m.content }}<|im_end|>
{%- elif m.role == 'assistant' %}<|im_assistant|>assistant<|im_middle|>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}
{%- if m.tool_calls %}<|tool_calls_section_begin|>{% for call in m.tool_calls %}<|tool_call_begin|>functions.{{ call.function.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>{{ call.function.arguments | tojson }}<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>{% endif %}<|im_end|>
{%- else %}<|im_user|>{{ m.role }}<|im_middle|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"""

# template, end tokens, and the form that is expected
TEMPLATES = {
    "qwen3": (QWEN_JSON, ["<|im_end|>"], "Hermes JSON"),
    "thinks at once": (OPENS_THINKING, ["<|im_end|>"], "Hermes JSON"),
    "qwen3-coder": (QWEN_XML, ["<|im_end|>"], "Qwen XML"),
    "glm-4.5": (GLM, ["<|im_end|>"], "GLM XML"),
    "llama-3.1": (LLAMA, ["<|eot_id|>"], "Llama JSON"),
    "llama-4": (LLAMA_PYTHON, ["<|eot_id|>"], "Llama Python"),
    "mistral-v3": (MISTRAL_OLD, ["</s>"], "Mistral JSON"),
    "mistral-v11": (MISTRAL_NEW, ["</s>"], "Mistral arguments"),
    "deepseek-v3": (DEEPSEEK_V3, ["<｜end▁of▁sentence｜>"], "DeepSeek blocks"),
    "deepseek-v3.1": (DEEPSEEK_V31, ["<｜end▁of▁sentence｜>"], "DeepSeek JSON"),
    "gpt-oss": (GPT_OSS, ["<|end|>", "<|return|>", "<|call|>"], "gpt-oss channels"),
    "functiongemma": (GEMMA, ["<end_of_turn>"], "Gemma calls"),
    "olmo-3": (OLMO, ["<|im_end|>"], "OLMo Python"),
    "phi-4-mini": (PHI, ["<|end|>"], "Phi JSON"),
    "granite-3": (GRANITE, ["<|end_of_text|>"], "Granite JSON"),
    "command-a": (COMMAND, ["<|END_OF_TURN_TOKEN|>"], "Command actions"),
    "kimi-k2": (KIMI, ["<|im_end|>"], "Kimi sections"),
}
