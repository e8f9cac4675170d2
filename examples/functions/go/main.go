// A function that answers what its event asks for.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

type Broken struct {
	message string
}

func (broken Broken) Error() string {
	return broken.message
}

type request struct {
	Raise string
	Exit  int
	Env   string
	Say   string
	Sleep int
}

func main() {
	lambda.Start(handler)
}

func handler(ctx context.Context, event any) (any, error) {
	if event == "context" {
		return told(ctx), nil
	}
	asked := requested(event)
	if asked.Say != "" {
		fmt.Println(asked.Say)
	}
	switch {
	case asked.Raise != "":
		return nil, Broken{asked.Raise}
	case asked.Exit != 0:
		os.Exit(asked.Exit)
	case asked.Env != "":
		return os.Getenv(asked.Env), nil
	case asked.Sleep != 0:
		time.Sleep(time.Duration(asked.Sleep) * time.Second)
	}
	return event, nil
}

func requested(event any) request {
	fields, _ := event.(map[string]any)
	text := func(name string) string {
		value, _ := fields[name].(string)
		return value
	}
	number := func(name string) int {
		value, _ := fields[name].(float64)
		return int(value)
	}
	return request{text("raise"), number("exit"), text("env"), text("say"), number("sleep")}
}

func told(ctx context.Context) map[string]any {
	deadline, _ := ctx.Deadline()
	own, _ := lambdacontext.FromContext(ctx)
	return map[string]any{
		"name":      lambdacontext.FunctionName,
		"version":   lambdacontext.FunctionVersion,
		"arn":       own.InvokedFunctionArn,
		"memory":    lambdacontext.MemoryLimitInMB,
		"request":   own.AwsRequestID,
		"group":     lambdacontext.LogGroupName,
		"stream":    lambdacontext.LogStreamName,
		"remaining": time.Until(deadline).Milliseconds(),
		"custom":    own.ClientContext.Custom,
	}
}
