"""The routes, one file per thing that they are about."""

from api.routes import batches, features, figure, health, jobs, keys, labels, models, results, saes, webhooks

ROUTERS = (
    jobs.router,
    results.router,
    figure.router,
    batches.router,
    models.router,
    saes.router,
    features.router,
    labels.router,
    webhooks.router,
    keys.router,
    health.router,
)
