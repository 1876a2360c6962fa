// The standard health service. Instance managers wait for SERVING before they use a process; a
// server that shuts down says NOT_SERVING first. Source: grpc/grpc doc/health-checking.md.

import {
  HealthCheckResponse_ServingStatus as SERVING_STATUS,
  HealthDefinition,
  type HealthCheckResponse,
} from '../api/generated/health.js';
import type { RpcServer } from './server.js';
import { RPC_STATUS, RpcError } from './status.js';

/** Name under which the whole server is asked for. */
const WHOLE_SERVER = '';

export class HealthStatuses {
  private readonly statuses = new Map<string, SERVING_STATUS>([
    [WHOLE_SERVER, SERVING_STATUS.SERVING],
  ]);
  private readonly watchers = new Set<() => void>();
  private isShutDown = false;

  /** Sets a service's status; '' is the whole server. Ignored once the server shuts down. */
  set(service: string, isServing: boolean): void {
    if (this.isShutDown) return;
    this.statuses.set(service, isServing ? SERVING_STATUS.SERVING : SERVING_STATUS.NOT_SERVING);
    this.notify();
  }

  /** Every service is NOT_SERVING from now on. */
  shutDown(): void {
    for (const service of this.statuses.keys()) this.set(service, false);
    this.isShutDown = true;
  }

  get(service: string): SERVING_STATUS | undefined {
    return this.statuses.get(service);
  }

  all(): Record<string, HealthCheckResponse> {
    return Object.fromEntries([...this.statuses].map(([name, status]) => [name, { status }]));
  }

  /** Yields the status now and after every change, until the signal aborts. */
  async *watch(service: string, signal: AbortSignal): AsyncGenerator<HealthCheckResponse> {
    let last: SERVING_STATUS | null = null;
    while (!signal.aborted) {
      const status = this.statuses.get(service) ?? SERVING_STATUS.SERVICE_UNKNOWN;
      if (status !== last) {
        last = status;
        yield { status };
        continue;
      }
      await this.nextChange(signal);
    }
  }

  private notify(): void {
    for (const wake of [...this.watchers]) wake();
  }

  private nextChange(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        this.watchers.delete(wake);
        signal.removeEventListener('abort', wake);
        resolve();
      };
      this.watchers.add(wake);
      signal.addEventListener('abort', wake);
    });
  }
}

/** Registers the service; anyone may ask, whatever volume they mean. */
export function addHealthService(server: RpcServer): void {
  const health = server.health;
  server.addService(
    HealthDefinition,
    {
      check: ({ service }) => {
        const status = health.get(service);
        if (status !== undefined) return { status };
        throw new RpcError(RPC_STATUS.NOT_FOUND, 'unknown service');
      },
      list: () => ({ statuses: health.all() }),
      watch: ({ service }, call) => health.watch(service, call.signal),
    },
    { checksIdentity: false },
  );
}
