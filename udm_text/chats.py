"""Chats: what a list of messages is, and how the chat template of a tokenizer writes it as a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from .framing import tokenizer_frame, tokenizer_separator

Message = dict[str, str]
"""{"role": "system", "user" or "assistant", "content": a text}."""

MARKS = ("[SYSTEM]", "[USER]", "[ASSISTANT]")
"""Tokens that stand before the messages in chats of a tokenizer of our own."""

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '[' + message['role'] | upper + '] ' + message['content'] | trim }}{{ '' if loop.last else ' ' }}"
    "{% endfor %}"
)
"""The chat template of a tokenizer of our own. The separator behind the prompt says that the answer begins."""

_TRIAL = ("user", "assistant", "user")


def check_chat(messages: Any, last: str | None = "user") -> list[Message]:
    """The messages of a chat, role and content of each and nothing else.

    Args:
        messages: a list of {"role": ..., "content": ...}: one of the system or none, then those of the user and of the
            assistant in turn. The system's alone may be blank.
        last: whose the last message has to be; None: anybody's.

    Raises:
        ValueError: which message is wrong, and what is.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(
            f"a chat must be a list of messages, {{'role': ..., 'content': ...}} each, got {_short(messages)}"
        )
    chat: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"message {number} must have a 'role' and a 'content', got {_short(message)}")
        role, content = message["role"], message["content"]
        spoken = [said["role"] for said in chat if said["role"] != "system"]
        turn = "assistant" if len(spoken) % 2 else "user"
        if role != turn and not (role == "system" and not chat):
            raise ValueError(
                f"message {number} must be of the role {turn!r}{' or system' * (not chat)}, got {_short(role)}: a chat "
                "is one message of the system or none, then those of user and assistant in turn"
            )
        if not isinstance(content, str) or not (content.strip() or role == "system"):
            raise ValueError(
                f"message {number}, of the {role}, must be a text with something in it, got {_short(content)}"
            )
        chat.append({"role": str(role), "content": str(content)})
    if last is not None and chat[-1]["role"] != last:
        raise ValueError(f"the last message of a chat must be of the role {last!r}, got {chat[-1]['role']!r}")
    return chat


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."


def answers_of(chat: Sequence[Message]) -> Iterator[tuple[list[Message], str]]:
    """What the assistant says in a chat, each answer with the messages before it."""
    for i, message in enumerate(chat):
        if message["role"] == "assistant":
            yield list(chat[:i]), message["content"]


def prompt_of(tokenizer: Any, chat: Sequence[Message]) -> str:
    """The text of messages as the template of the tokenizer writes them, up to where an answer begins.

    What the tokenizer itself puts in front of every text is left out where the template writes it, too.

    Raises:
        ValueError: the tokenizer has no chat template, or it cannot write these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template, which says how messages become a text: train with `udm train "
            "--chat_template FILE`, or set tokenizer.chat_template to a Jinja template and save it"
        )
    try:
        text = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, KeyError) as error:
        roles = ", ".join(message["role"] for message in chat)
        raise ValueError(f"the chat template cannot write a chat of {roles}: {error}") from error
    if not any(token and text.startswith(token) for token in (tokenizer.bos_token, tokenizer.cls_token)):
        return str(text)
    prefix, _ = tokenizer_frame(tokenizer)
    return str(text).removeprefix("".join(tokenizer.convert_ids_to_tokens(prefix)))


def check_template(tokenizer: Any) -> None:
    """Tries the chat template of a tokenizer on a chat of two turns.

    Raises:
        ValueError: it writes no text; it leaves out what is said; it writes the separator, which says where the answer
            begins and so must not stand in a prompt.
    """
    said = [str(number) for number, _ in enumerate(_TRIAL)]
    prompt = prompt_of(tokenizer, [{"role": r, "content": c} for r, c in zip(_TRIAL, said, strict=True)])
    if not all(content in prompt for content in said):
        raise ValueError(f"the chat template leaves messages out: of {', '.join(said)} it writes {_short(prompt)}")
    separator = tokenizer_separator(tokenizer)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if any(ids[i : i + len(separator)] == separator for i in range(len(ids))):
        raise ValueError(
            f"the chat template writes {''.join(tokenizer.convert_ids_to_tokens(separator))}, which stands between "
            "prompt and answer and must not stand in a prompt: give another by --chat_template FILE"
        )


def refuse_special(tokenizer: Any, chat: Sequence[Message]) -> None:
    """Raises ValueError for a message that holds a special token, as a mark of whose turn it is, spelt out."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for number, message in enumerate(chat, start=1):
        found = [i for i in tokenizer(message["content"], add_special_tokens=False)["input_ids"] if i in special]
        if found:
            raise ValueError(
                f"message {number} of the chat holds {tokenizer.convert_ids_to_tokens(found[0])}, a special token of "
                "this model: write it otherwise"
            )
