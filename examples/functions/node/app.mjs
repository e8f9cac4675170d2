// A function that answers what its event asks for.
import { setTimeout } from "node:timers/promises";

class Broken extends Error {
  name = "Broken";
}

export async function handler(event, context) {
  if (event === "context") {
    return {
      name: context.functionName,
      version: context.functionVersion,
      arn: context.invokedFunctionArn,
      memory: context.memoryLimitInMB,
      request: context.awsRequestId,
      group: context.logGroupName,
      stream: context.logStreamName,
      remaining: context.getRemainingTimeInMillis(),
      custom: context.clientContext?.custom,
    };
  }
  if (event?.say) {
    process.stdout.write(`${event.say}\n`);
  }
  if (event?.raise) {
    throw new Broken(event.raise);
  }
  if (event?.exit) {
    process.exit(event.exit);
  }
  if (event?.env) {
    return process.env[event.env];
  }
  if (event?.sleep) {
    await setTimeout(1000 * event.sleep);
  }
  return event;
}
