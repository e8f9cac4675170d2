"""A function that answers what its event asks for."""

import os
import sys


class Broken(Exception):
    pass


def handler(event, context):
    match event:
        case {"raise": message}:
            raise Broken(message)
        case {"exit": code}:
            sys.stdout.flush()
            os._exit(code)
        case {"env": name}:
            return os.environ.get(name)
        case {"say": words}:
            print(words)
            return len(words)
        case "context":
            client = context.client_context
            return {
                "name": context.function_name,
                "version": context.function_version,
                "arn": context.invoked_function_arn,
                "memory": context.memory_limit_in_mb,
                "request": context.aws_request_id,
                "group": context.log_group_name,
                "stream": context.log_stream_name,
                "remaining": context.get_remaining_time_in_millis(),
                "custom": client.custom if client else None,
            }
    return event
