// What scripts do through the JavaScript client: eleven built-in kinds by their typed calls, an informer, a custom kind, a pod's streams.
//
// KUBECONFIG and NAMESPACE say where; an exception, and with it the exit code, says what went wrong.

import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';

import * as k8s from '@kubernetes/client-node';

const namespace = process.env.NAMESPACE;
// How long an event may take, in milliseconds.
const PATIENCE = 30_000;

const labels = { app: 'a' };
const selector = { matchLabels: labels };
const template = { metadata: { labels }, spec: { containers: [{ name: 'c', image: 'sternpost.io/toolbox' }] } };
const once = { metadata: { labels }, spec: { ...template.spec, restartPolicy: 'Never' } };
const backend = { service: { name: 's', port: { number: 80 } } };
const rule = { host: 'a.example.com', http: { paths: [{ path: '/', pathType: 'Exact', backend }] } };
const target = { apiVersion: 'apps/v1', kind: 'Deployment', name: 'none' };

// API class, apiVersion, kind, plural, the object without its metadata.
const KINDS = [
    [k8s.CoreV1Api, 'v1', 'ConfigMap', 'configmaps', { data: { a: '1' } }],
    [k8s.CoreV1Api, 'v1', 'Secret', 'secrets', { data: { a: 'AAH/' } }],
    [k8s.CoreV1Api, 'v1', 'Service', 'services', { spec: { ports: [{ port: 80 }] } }],
    [k8s.CoreV1Api, 'v1', 'ServiceAccount', 'serviceaccounts', { automountServiceAccountToken: true }],
    [
        k8s.CoreV1Api,
        'v1',
        'PersistentVolumeClaim',
        'persistentvolumeclaims',
        { spec: { accessModes: ['ReadWriteOnce'], resources: { requests: { storage: '1Mi' } } } },
    ],
    [k8s.AppsV1Api, 'apps/v1', 'Deployment', 'deployments', { spec: { replicas: 0, selector, template } }],
    [
        k8s.BatchV1Api,
        'batch/v1',
        'CronJob',
        'cronjobs',
        { spec: { schedule: '0 0 1 1 *', suspend: true, jobTemplate: { spec: { template: once } } } },
    ],
    [
        k8s.RbacAuthorizationV1Api,
        'rbac.authorization.k8s.io/v1',
        'Role',
        'roles',
        { rules: [{ apiGroups: [''], resources: ['pods'], verbs: ['get'] }] },
    ],
    [k8s.NetworkingV1Api, 'networking.k8s.io/v1', 'Ingress', 'ingresses', { spec: { rules: [rule] } }],
    [k8s.PolicyV1Api, 'policy/v1', 'PodDisruptionBudget', 'poddisruptionbudgets', { spec: { minAvailable: 1, selector } }],
    [
        k8s.AutoscalingV2Api,
        'autoscaling/v2',
        'HorizontalPodAutoscaler',
        'horizontalpodautoscalers',
        { spec: { scaleTargetRef: target, minReplicas: 1, maxReplicas: 3 } },
    ],
];

// Waits until `find` gives something.
async function eventually(what, find) {
    const end = Date.now() + PATIENCE;
    for (;;) {
        const found = await find();
        if (found) {
            return found;
        }
        assert(Date.now() < end, `${what} has not come`);
        await sleep(20);
    }
}

// The body of a refusal, which there must be.
async function refused(code, call) {
    try {
        await call();
    } catch (refusal) {
        assert.equal(refusal.code, code, refusal.message);
        return typeof refusal.body === 'string' ? JSON.parse(refusal.body) : refusal.body;
    }
    assert.fail(`must be refused with ${code}: ${call}`);
}

// A watch that runs beside and remembers what it has seen.
async function watching(config, path, query) {
    const events = [];
    const controller = await new k8s.Watch(config).watch(
        path,
        query,
        (type, object) => events.push({ type, object }),
        () => {},
    );
    const found = (type, name, annotations) => (event) =>
        event.type === type &&
        event.object.metadata.name === name &&
        Object.entries(annotations).every(([key, value]) => event.object.metadata.annotations?.[key] === value);
    return {
        wait: (type, name, annotations = {}) => eventually(`${type} of ${name}`, () => events.find(found(type, name, annotations))),
        stop: () => controller.abort(),
    };
}

async function visit(config, [api, apiVersion, kind, plural, parts]) {
    const client = config.makeApiClient(api);
    const name = `js-${kind.toLowerCase()}`;
    const call = (verb, suffix = '') => client[`${verb}Namespaced${kind}${suffix}`].bind(client);
    const metadata = { name, labels: { js: kind } };
    const selected = { namespace, labelSelector: `js=${kind}` };
    const path = `${apiVersion === 'v1' ? '/api' : '/apis'}/${apiVersion}/namespaces/${namespace}/${plural}`;
    const events = await watching(config, path, { labelSelector: selected.labelSelector });
    const made = await call('create')({ namespace, body: { apiVersion, kind, metadata, ...parts } });
    assert(made.metadata.uid && made.metadata.resourceVersion, JSON.stringify(made));
    await events.wait('ADDED', name);

    const patch = (body, media, more = {}) =>
        call('patch')({ name, namespace, body, ...more }, k8s.setHeaderOptions('Content-Type', media));
    const note = (key, value = '1') => ({ metadata: { annotations: { [key]: value } } });
    await patch(note('merge'), k8s.PatchStrategy.MergePatch);
    await patch([{ op: 'add', path: '/metadata/annotations/json', value: '1' }], k8s.PatchStrategy.JsonPatch);
    await patch(note('strategic'), k8s.PatchStrategy.StrategicMergePatch);
    await events.wait('MODIFIED', name, { merge: '1', json: '1', strategic: '1' });

    const stale = await refused(409, () => call('replace')({ name, namespace, body: made }));
    assert.match(stale.message, /the object has been modified/);
    for (;;) {
        const body = await call('read')({ name, namespace });
        body.metadata.annotations.replaced = '1';
        try {
            await call('replace')({ name, namespace, body });
            break;
        } catch (conflict) {
            assert.equal(conflict.code, 409, conflict.message);
        }
    }

    const wanted = { apiVersion, kind, ...note('replaced', '2') };
    const another = { fieldManager: 'another' };
    const apply = k8s.PatchStrategy.ServerSideApply;
    const conflict = await refused(409, () => patch(wanted, apply, another));
    assert.match(conflict.message, /\.metadata\.annotations\.replaced/);
    await patch(wanted, apply, { ...another, force: true });
    await events.wait('MODIFIED', name, { replaced: '2' });

    const second = { apiVersion, kind, metadata: { ...metadata, name: `${name}-2` }, ...parts };
    await call('patch')({ name: `${name}-2`, namespace, body: second, ...another }, k8s.setHeaderOptions('Content-Type', apply));
    const first = await call('list')({ ...selected, limit: 1 });
    const rest = await call('list')({ ...selected, limit: 1, _continue: first.metadata._continue });
    assert.deepEqual([...first.items, ...rest.items].map((item) => item.metadata.name), [name, `${name}-2`]);
    await call('delete')({ name, namespace });
    await events.wait('DELETED', name);
    await client[`deleteCollectionNamespaced${kind}`](selected);
    await events.wait('DELETED', `${name}-2`);
    await refused(404, () => call('read')({ name, namespace }));
    events.stop();
}

// An informer sees what was there and what comes, and holds it.
async function informer(config) {
    const core = config.makeApiClient(k8s.CoreV1Api);
    const labelSelector = 'js=informer';
    const create = (name) =>
        core.createNamespacedConfigMap({ namespace, body: { metadata: { name, labels: { js: 'informer' } }, data: { a: '1' } } });
    await create('before');
    const list = () => core.listNamespacedConfigMap({ namespace, labelSelector });
    const held = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, list, labelSelector);
    const seen = [];
    for (const verb of ['add', 'update', 'delete']) {
        held.on(verb, (object) => seen.push(`${verb} ${object.metadata.name}`));
    }
    await held.start();
    await create('after');
    const patch = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch);
    await core.patchNamespacedConfigMap({ name: 'after', namespace, body: { data: { a: '2' } } }, patch);
    await eventually('the update', () => held.get('after', namespace)?.data.a === '2');
    await core.deleteNamespacedConfigMap({ name: 'after', namespace });
    await eventually('the deletion', () => seen.includes('delete after'));
    assert.deepEqual(seen, ['add before', 'add after', 'update after', 'delete after']);
    assert.deepEqual(held.list(namespace).map((object) => object.metadata.name), ['before']);
    await held.stop();
    await core.deleteNamespacedConfigMap({ name: 'before', namespace });
}

async function customKind(config) {
    const group = `js.${namespace}.example.com`;
    const schema = {
        type: 'object',
        properties: { spec: { type: 'object', properties: { teeth: { type: 'integer', minimum: 2 } } } },
    };
    const version = { name: 'v1', served: true, storage: true, schema: { openAPIV3Schema: schema } };
    const extensions = config.makeApiClient(k8s.ApiextensionsV1Api);
    const name = `gears.${group}`;
    const spec = { group, scope: 'Namespaced', names: { plural: 'gears', kind: 'Gear' }, versions: [version] };
    await extensions.createCustomResourceDefinition({ body: { metadata: { name }, spec } });
    try {
        await eventually('the kind', async () => {
            const { status } = await extensions.readCustomResourceDefinition({ name });
            return status?.conditions?.some((one) => one.type === 'Established' && one.status === 'True');
        });
        const objects = config.makeApiClient(k8s.CustomObjectsApi);
        const place = { group, version: 'v1', namespace, plural: 'gears' };
        const gear = (teeth) => ({ apiVersion: `${group}/v1`, kind: 'Gear', metadata: { name: 'g', namespace }, spec: { teeth } });
        const bad = await refused(422, () => objects.createNamespacedCustomObject({ ...place, body: gear(1) }));
        assert.match(bad.message, /spec\.teeth/);
        await objects.createNamespacedCustomObject({ ...place, body: gear(8) });
        const generic = k8s.KubernetesObjectApi.makeApiClient(config);
        await generic.patch(gear(12), undefined, undefined, 'js', true, k8s.PatchStrategy.ServerSideApply);
        assert.equal((await generic.read(gear(0))).spec.teeth, 12);
        assert.equal((await generic.list(`${group}/v1`, 'Gear', namespace)).items.length, 1);
        await generic.delete(gear(0));
    } finally {
        await extensions.deleteCustomResourceDefinition({ name });
    }
}

// What the stream of one end has said when it ends.
async function all(stream) {
    let text = '';
    for await (const chunk of stream) {
        text += chunk;
    }
    return text;
}

// A pod's log, and exec over WebSocket.
async function streams(config) {
    const core = config.makeApiClient(k8s.CoreV1Api);
    const container = (name, ...command) => ({ name, image: 'sternpost.io/toolbox', command });
    const spec = {
        terminationGracePeriodSeconds: 0,
        initContainers: [container('first', 'echo', 'ready')],
        containers: [container('c', 'sleep', 'infinity')],
    };
    const pod = { name: 'streams', namespace };
    await core.createNamespacedPod({ namespace, body: { metadata: pod, spec } });
    await eventually('the pod', async () => (await core.readNamespacedPod(pod)).status.phase === 'Running');
    assert.equal(await core.readNamespacedPodLog({ ...pod, container: 'first' }), 'ready\n');
    const log = new PassThrough();
    await new k8s.Log(config).log(namespace, pod.name, 'first', log, { follow: true, tailLines: 1 });
    assert.equal(await all(log), 'ready\n');

    // What a command says and how it ends.
    const exec = async (command) => {
        const [stdout, stderr] = [new PassThrough(), new PassThrough()];
        const said = Promise.all([all(stdout), all(stderr)]);
        const status = new Promise((resolve, reject) => {
            const run = new k8s.Exec(config).exec(namespace, pod.name, 'c', command, stdout, stderr, null, false, resolve);
            run.catch(reject);
        });
        const ended = await status;
        stdout.end();
        stderr.end();
        return [ended, ...(await said)];
    };
    const [ended, said, complaint] = await exec(['cat', '/none']);
    assert.deepEqual([ended.reason, ended.details.causes[0].message, said], ['NonZeroExitCode', '1', '']);
    assert.match(complaint, /none/);
    const [done, version] = await exec(['cat', '/proc/version']);
    assert.equal(done.status, 'Success');
    assert.match(version, /^Linux/);
    await core.deleteNamespacedPod(pod);
}

const config = new k8s.KubeConfig();
config.loadFromFile(process.env.KUBECONFIG);
const timed = async (name, part) => {
    const begin = Date.now();
    await part();
    console.log(`${name}: ${Date.now() - begin} ms`);
};
for (const kind of KINDS) {
    await timed(kind[2], () => visit(config, kind));
}
await timed('an informer', () => informer(config));
await timed('a custom kind', () => customKind(config));
await timed("a pod's streams", () => streams(config));
// Connections that are kept open would keep the program.
process.exit(0);
