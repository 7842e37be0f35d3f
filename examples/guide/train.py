"""Train an agent with the flags of the GSPO guide's demo.

    python examples/guide/train.py --task customer_service --iterations 12
    python examples/guide/train.py --task technical_support --use-gspo-token
    python examples/guide/train.py --task tutoring --compare

The first two train and then ask the agent something that it was not trained on. The last trains GSPO and GRPO
from the same weights and prints what was measured. `--set` takes settings as `gspo-train` does."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from gspo_cli import (
    CONVERSATION_CONFIGS,
    AgentConfig,
    ConversationEnvironment,
    GSPOConfig,
    MultiTurnAgent,
    UserError,
    create_advanced_rl_orchestrator,
    create_domain_reward,
    get_config_for_task,
    train_with_gspo,
)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a conversational agent with GSPO.")
    parser.add_argument("--task", default="customer_service", choices=list(CONVERSATION_CONFIGS))
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, a hub id or a folder")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--use-gspo-token", action="store_true", help="train the token variant")
    parser.add_argument("--compare", action="store_true", help="train GSPO and GRPO, and compare them")
    parser.add_argument("--output-dir", default="outputs")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings")
    return parser.parse_args(given)


class Progress:
    """A callback: prints one line for each evaluation."""

    def on_evaluation(self, record: dict) -> None:
        """One line of evals.jsonl."""
        print(f"evaluated iteration {record['iteration']}: held-out score {record['score']:.3f}")


async def train(options: argparse.Namespace) -> None:
    """Train one agent, and ask it something."""
    agent = MultiTurnAgent(AgentConfig(model_name=options.model))
    await agent.initialize()
    environment = ConversationEnvironment(**CONVERSATION_CONFIGS[options.task])
    print(f"{options.task}: {len(environment.scenarios)} scenarios to train on")
    config = GSPOConfig.from_training_config(
        get_config_for_task(options.task, model_name=options.model),
        num_outer_iterations=options.iterations,
        output_dir=options.output_dir,
        use_gspo_token=options.use_gspo_token,
        overrides=options.set,
    )
    reward = create_domain_reward(options.task)
    agent = await train_with_gspo(config, agent, environment, reward, callbacks=[Progress()])
    [opening, *_] = environment.task().heldout_problems()
    print(f"\nUser:  {opening.messages[-1].content}")
    print(f"Agent: {await agent.generate_response(opening.messages)}")


async def compare(options: argparse.Namespace) -> None:
    """Train GSPO and GRPO from the same weights, and print what was measured."""
    agent = MultiTurnAgent(AgentConfig(model_name=options.model))
    found = await create_advanced_rl_orchestrator(agent).compare(
        ["gspo_token" if options.use_gspo_token else "gspo", "grpo"],
        environment=ConversationEnvironment(**CONVERSATION_CONFIGS[options.task]),
        reward_model=create_domain_reward(options.task),
        num_iterations=options.iterations,
        output_dir=options.output_dir,
        overrides=options.set,
    )
    print(found)
    print(f"The report is in {found.folder}.")


def main(given: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = arguments(given)
    try:
        asyncio.run(compare(options) if options.compare else train(options))
    except UserError as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt as error:  # a second Ctrl-C, or one before the first iteration
        print(f"train.py: {error or 'stopped'}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
