//! What both doors say of the server's health. It serves by itself unless it is told to wait: for rules that name a domain, or
//! for a store that answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::config::watch::RulesFiles;
use crate::grpc::HEALTH_SERVICE;
use crate::settings::HealthSettings;
use crate::store::Store;

pub(super) struct Health {
    pub grpc: HealthReporter,
    pub http: Arc<AtomicBool>,
    settings: HealthSettings,
}

/// How often a store is asked whether it answers, where health hangs on it.
const STORE_ASKED_EVERY: Duration = Duration::from_secs(1);

impl Health {
    pub async fn new(settings: HealthSettings) -> Self {
        let health = Self { grpc: tonic_health::server::health_reporter().0, http: Arc::default(), settings };
        health.set(!settings.once_loaded && !settings.with_store).await;
        health
    }

    /// Says SERVING when what it waits for is there; of a store, for as long as it is. Ends only where no rules are loaded any
    /// more.
    pub async fn follow(&self, rules: &RulesFiles, store: &Store) {
        if self.settings.once_loaded && rules.status().wait_for(|status| status.in_force.domains > 0).await.is_err() {
            return;
        }
        loop {
            let serving = !self.settings.with_store || store.is_ready().await;
            if serving != self.http.load(Ordering::Relaxed) {
                self.set(serving).await;
            }
            if !self.settings.with_store {
                return std::future::pending().await;
            }
            sleep(STORE_ASKED_EVERY).await;
        }
    }

    pub async fn set(&self, serving: bool) {
        self.http.store(serving, Ordering::Relaxed);
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", HEALTH_SERVICE] {
            self.grpc.set_service_status(service, status).await;
        }
    }

    /// Ends the streams of those who watch it, which would hold a drain up.
    pub async fn end(&mut self) {
        for service in ["", HEALTH_SERVICE] {
            self.grpc.clear_service_status(service).await;
        }
    }
}
