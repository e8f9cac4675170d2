import com.amazonaws.services.lambda.runtime.ClientContext;
import com.amazonaws.services.lambda.runtime.Context;
import com.amazonaws.services.lambda.runtime.RequestHandler;
import java.util.HashMap;
import java.util.Map;

/** A function that answers what its event asks for. */
public final class App implements RequestHandler<Object, Object> {
    @Override
    public Object handleRequest(Object event, Context context) {
        if ("context".equals(event)) {
            return told(context);
        }
        if (!(event instanceof Map<?, ?> asked)) {
            return event;
        }
        if (asked.get("say") instanceof String words) {
            System.out.println(words);
        }
        if (asked.get("raise") instanceof String message) {
            throw new Broken(message);
        }
        if (asked.get("exit") instanceof Number code) {
            System.exit(code.intValue());
        }
        if (asked.get("env") instanceof String name) {
            return System.getenv(name);
        }
        if (asked.get("sleep") instanceof Number seconds) {
            sleep(seconds.longValue());
        }
        return event;
    }

    private static void sleep(long seconds) {
        try {
            Thread.sleep(1000 * seconds);
        } catch (InterruptedException interrupted) {
            throw new Broken("interrupted");
        }
    }

    private static Map<String, Object> told(Context context) {
        ClientContext client = context.getClientContext();
        Map<String, Object> told = new HashMap<>();
        told.put("name", context.getFunctionName());
        told.put("version", context.getFunctionVersion());
        told.put("arn", context.getInvokedFunctionArn());
        told.put("memory", context.getMemoryLimitInMB());
        told.put("request", context.getAwsRequestId());
        told.put("group", context.getLogGroupName());
        told.put("stream", context.getLogStreamName());
        told.put("remaining", context.getRemainingTimeInMillis());
        told.put("custom", client == null ? null : client.getCustom());
        return told;
    }
}

final class Broken extends RuntimeException {
    Broken(String message) {
        super(message);
    }
}
