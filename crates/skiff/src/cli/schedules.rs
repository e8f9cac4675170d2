//! Events of functions at their times.

use http::Method;
use skiff_types::api::{CreateSchedule, Schedule};

use super::admin::remove;
use super::args::ScheduleCommand;
use super::{Scope, output};

/// `skiff schedule …`.
pub async fn schedule(scope: &Scope, command: ScheduleCommand) -> anyhow::Result<()> {
    match command {
        ScheduleCommand::Ls => {
            let schedules: Vec<Schedule> = scope.client.get(&scope.path("schedules")).await?;
            output::show(scope.output, &schedules, |schedules| {
                let rows: Vec<_> = schedules.iter().map(row).collect();
                output::table(&["NAME", "EXPRESSION", "ZONE", "FUNCTION", "NEXT"], &rows);
            })
        }
        ScheduleCommand::Create {
            name,
            expression,
            function,
            qualifier,
            timezone,
            data,
            description,
            age,
            delete_after,
        } => {
            let body = CreateSchedule {
                name,
                expression,
                timezone,
                function,
                qualifier,
                input: data,
                description,
                age_s: age,
                delete_after,
            };
            let path = scope.path("schedules");
            let made: Schedule = scope.client.call(Method::POST, &path, Some(&body)).await?;
            output::show(scope.output, &made, |made| {
                output::line(format!("{} fires next {}", made.name, next(made)));
            })
        }
        ScheduleCommand::Describe { name } => {
            let path = scope.path(&format!("schedules/{}", super::segment(&name)));
            let found: Schedule = scope.client.get(&path).await?;
            output::show(scope.output, &found, describe)
        }
        ScheduleCommand::Rm { name } => {
            let path = scope.path(&format!("schedules/{}", super::segment(&name)));
            remove(scope, &path, &name).await
        }
    }
}

fn next(schedule: &Schedule) -> String {
    schedule
        .next_unix_ms
        .map_or_else(|| "never".to_owned(), output::time)
}

fn function(schedule: &Schedule) -> String {
    match &schedule.qualifier {
        Some(qualifier) => format!("{}:{qualifier}", schedule.function),
        None => schedule.function.to_string(),
    }
}

fn row(schedule: &Schedule) -> Vec<String> {
    vec![
        schedule.name.clone(),
        schedule.expression.clone(),
        schedule.timezone.clone(),
        function(schedule),
        next(schedule),
    ]
}

fn describe(schedule: &Schedule) {
    let fired = schedule.fired_unix_ms;
    let fired = fired.map_or_else(|| "never".to_owned(), output::time);
    for (name, value) in [
        ("name", schedule.name.clone()),
        ("fires", schedule.expression.clone()),
        ("time zone", schedule.timezone.clone()),
        ("function", function(schedule)),
        (
            "event",
            schedule.input.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        ("description", schedule.description.clone()),
        ("enabled", schedule.enabled.to_string()),
        (
            "missed times",
            format!("fire up to {} s late", schedule.age_s),
        ),
        ("made", output::time(schedule.created_unix_ms)),
        ("fired", fired),
        ("fires next", next(schedule)),
    ] {
        output::line(format!("{name:<14}{value}"));
    }
}
