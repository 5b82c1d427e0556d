// Made by scripts/viewer_types.py from the service's OpenAPI document. Do not edit.

export interface paths {
  "/v1/health": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Health
     * @description Say that the service is up. The one endpoint that needs no token.
     */
    get: operations["health"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Stores
     * @description List the stores.
     */
    get: operations["stores"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/metrics": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Metrics
     * @description List the metrics of heads: definitions and units.
     */
    get: operations["metrics"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Store
     * @description Describe a store.
     */
    get: operations["store"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/runs": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Runs
     * @description List the runs: table `runs`.
     */
    get: operations["runs"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/runs/{run}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Run
     * @description Return a run's configuration and provenance.
     */
    get: operations["run"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Episodes
     * @description List episodes: table `episodes`, filtered, in pages.
     */
    get: operations["episodes"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/overview": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Overview
     * @description Show what a store holds: what one wants to see before any episode.
     */
    get: operations["overview"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/queries": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Queries
     * @description List the ready-made questions.
     */
    get: operations["queries"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/queries/{name}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Query
     * @description Ask a ready-made question.
     */
    get: operations["query"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/sql": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    get?: never;
    put?: never;
    /**
     * Sql
     * @description Run one query, `SELECT` or alike, on the tables of docs/schema.md.
     *
     *     It runs in a process of its own, that can read nothing else, and is stopped after a time.
     */
    post: operations["sql"];
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/compare": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Comparison
     * @description Compare a metric of every head between two groups of episodes.
     */
    get: operations["comparison"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/difference": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Difference
     * @description Return mean maps of two groups and their difference, aligned by normalised time.
     *
     *     (group, moment, row, col); groups are `a`, `b` and `difference`.
     */
    get: operations["difference"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/files/{path}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * File
     * @description Return a file of the store: its marker, a run, a commit, or a file that a commit lists.
     */
    get: operations["file"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    /**
     * File
     * @description Return a file of the store: its marker, a run, a commit, or a file that a commit lists.
     */
    head: operations["file_head"];
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/attention": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Attention
     * @description Return a slice of the attention weights, as `Episode.attention` does.
     */
    get: operations["attention"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/maps": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Maps
     * @description Return maps of attention over a camera's patches, as `Episode.maps` does.
     */
    get: operations["maps"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/rollout": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Rollout
     * @description Return attention rollout over a camera's patches, up to a layer, as `rollout_map` does.
     */
    get: operations["rollout"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/active-head": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Active Head
     * @description Return the head of a layer whose map varies most, as `Episode.active_head` does.
     */
    get: operations["active_head"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Episode
     * @description Describe an episode: frames, cameras, phases, axes.
     */
    get: operations["episode"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/frames/{keyframe}/{camera}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Frame
     * @description Return a keyframe's camera image: JPEG or PNG, whose pixels are those that the policy saw.
     */
    get: operations["frame"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/metrics/{metric}/matrix": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Matrix
     * @description Return a metric of every layer and head: at a keyframe, or over the episode.
     */
    get: operations["matrix"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/metrics/{metric}/trace": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Trace
     * @description Return a metric at every keyframe: of one head, or of all heads of a layer.
     */
    get: operations["trace"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/keyframes": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Keyframes
     * @description List an episode's rows of table `keyframes`.
     */
    get: operations["keyframes"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/tokens": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Tokens
     * @description List an episode's rows of table `tokens`.
     */
    get: operations["tokens"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/spans": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Spans
     * @description List an episode's rows of table `spans`.
     */
    get: operations["spans"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/sinks": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Sinks
     * @description List an episode's rows of table `sinks`.
     */
    get: operations["sinks"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/objects": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Objects
     * @description List the objects of the parts that count, in each camera.
     */
    get: operations["objects"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/masks": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Masks
     * @description Return the objects' masks: at a keyframe, or all.
     */
    get: operations["masks"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/objects/{metric}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Object Metric
     * @description Return how much every head's map lies on an object, at every keyframe: lift, pointing_hit and others.
     */
    get: operations["object_metric"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/policy/{name}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Policy Array
     * @description Return one of the policy's own arrays, as `Episode.policy_array` does.
     */
    get: operations["policy_array"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/interventions": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Interventions
     * @description List an episode's rows of table `interventions`; none without probes.
     */
    get: operations["interventions"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/intervention-masks": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Intervention Masks
     * @description List an episode's rows of table `intervention_masks`: which pixels each intervention replaced.
     */
    get: operations["intervention_masks"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/curves": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Curves
     * @description Return deletion and insertion curves of maps beside random order; none without `probe fidelity --curves`.
     */
    get: operations["curves"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/runs/{run}/linear-probes": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Linear Probes
     * @description List what a run's linear probes found, layer by layer; the newest first, none without `linear-probe`.
     */
    get: operations["linear_probes"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/failure": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Failure
     * @description Return the scores of failure that the newest `attnstore failure` gave an episode, and how good they are.
     */
    get: operations["failure"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/recordings": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Recordings
     * @description List episodes that have no end: those that are being recorded, and those whose recorder died.
     */
    get: operations["recordings"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/recordings/{recording}/{file}/calls/{call}/pictures/{camera}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Recorded Picture
     * @description Return a camera's picture at a policy call of an episode that is being recorded.
     */
    get: operations["recorded_picture"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/recordings/{recording}/{file}/calls/{call}/maps/{phase}/{camera}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Recorded Maps
     * @description Return where a policy looked at one call of a live recording: maps of every layer and head.
     *
     *     Of the query group that stands for the phase, the largest weight over its tokens, at the last step.
     */
    get: operations["recorded_maps"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/stores/{store}/episodes/{run}/{episode}/divergence/{other}": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Divergence
     * @description Say how far apart an episode's maps are in another run, head by head; see `compare runs`.
     */
    get: operations["divergence"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
  "/v1/tables": {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    /**
     * Tables
     * @description List the tables that SQL may ask, with every column's definition.
     */
    get: operations["tables"];
    put?: never;
    post?: never;
    delete?: never;
    options?: never;
    head?: never;
    patch?: never;
    trace?: never;
  };
}
export type webhooks = Record<string, never>;
export interface components {
  schemas: {
    /** @description The head of a layer whose map varies most, and by how much each does. */
    ActiveHead: {
      phase: string;
      camera: string;
      layer: number;
      step: number | null;
      keyframe: number | null;
      /** @description Null where no keyframe that is asked for has the camera. */
      head: number | null;
      /** @description By head. */
      variance: (number | null)[];
      chosen_by: string;
    };
    /** @description An array with names. */
    ArrayAnswer: {
      name: string | null;
      dims: string[];
      shape: number[];
      dtype: string;
      coords: {
        [key: string]: components["schemas"]["Coordinate"];
      };
      attrs: {
        [key: string]: unknown;
      };
      /** @description Nested lists; NaN is null. */
      values: unknown;
    };
    /** @description A camera's image and its patches. */
    CameraAnswer: {
      /** @description Pixels. */
      height: number;
      width: number;
      /** @description Rows and columns of patches. */
      grid: [number, number];
      /** @description Fraction of each patch that shows image; 0 for letterbox. */
      coverage: (number | null)[][];
      geometry: components["schemas"]["Geometry"];
    };
    /** @description A column of a query's rows. */
    ColumnAnswer: {
      name: string;
      type: string;
    };
    /** @description The parts of one kind: base, objects, probe, cnn. */
    CommittedParts: {
      kind: string;
      episodes: number;
      parts: number;
      bytes: number;
    };
    /** @description Two groups of episodes compared, head by head; see `attnstore.query.groups.membership.comparison`. */
    CompareAnswer: {
      a: string;
      b: string;
      episodes_a: number;
      episodes_b: number;
      metric: string;
      phase: string;
      camera: string;
      /** @description Tests that the correction is over. */
      family: string;
      /** @description Whether so few episodes could show anything. */
      conclusive: boolean;
      notes: string[];
      layers: number[];
      heads: number[];
      /** @description By layer, then head, as all that follows. */
      difference: (number | null)[][];
      cliffs_delta: (number | null)[][];
      p: (number | null)[][];
      q: (number | null)[][];
      significant: boolean[][];
      /** @description The heads that differ most, first. */
      table: components["schemas"]["ComparedHead"][];
    };
    /** @description A head, and how it differs between two groups of episodes. */
    ComparedHead: {
      rank: number;
      layer: number;
      head: number;
      mean_a: number | null;
      mean_b: number | null;
      difference: number | null;
      cliffs_delta: number | null;
      p: number | null;
      q: number | null;
      significant: boolean;
    };
    /** @description Labels along dimensions of an array. */
    Coordinate: {
      dims: string[];
      values: unknown;
    };
    /** @description Deletion or insertion of a layer's map beside random order, mean over keyframes of an episode. */
    CurveAnswer: {
      part: string;
      phase: string;
      layer: number;
      /** @description Changed at once, joined by `+`. */
      cameras: string;
      /** @description `deletion` or `insertion`. */
      curve: string;
      /** @description Share of the seen pixels that is replaced (deletion) or shown (insertion). */
      fraction: (number | null)[];
      /** @description si_mse of the action, in the order of the map. */
      attention: (number | null)[];
      /** @description The same in random order. */
      control: (number | null)[];
      /** @description Under the curve. */
      attention_area: number | null;
      control_area: number | null;
      /** @description Difference of the areas: positive if the map's order is better than chance. */
      gain: number | null;
      /** @description That the curves are the mean of. */
      keyframes: number;
    };
    /** @description How far apart an episode's maps are in two runs, by layer and head. */
    DivergenceAnswer: {
      /** @description The other run. */
      other: string;
      phase: string;
      camera: string;
      query: string;
      step: number | null;
      weighting: string;
      /** @description That are keyframes of both runs; what is said is the mean over them. */
      frames: number[];
      /** @description Jensen-Shannon divergence, bits: 0 equal, 1 disjoint; by layer, then head. */
      values: (number | null)[][];
    };
    /** @description What an episode is: everything that is needed to ask for the rest. */
    EpisodeAnswer: {
      run: string;
      episode: string;
      /** @description The dataset's own. */
      name: string;
      /** @description Tells this state of the episode from every other; parameter `v`. */
      version: string;
      outcome: string;
      task: string | null;
      date: string | null;
      instruction: string;
      precision: string;
      /** @description Frames of the recording in a second. */
      rate: number | null;
      total_frames: number | null;
      /** @description Index of each keyframe in the recording. */
      frames: number[];
      cameras: {
        [key: string]: components["schemas"]["CameraAnswer"];
      };
      phases: {
        [key: string]: components["schemas"]["PhaseAnswer"];
      };
      /** @description Shapes of the policy's own arrays: actions, actions_recorded, state, denoising. */
      policy: {
        [key: string]: number[];
      };
    };
    EpisodesRow: {
      /** @description id of the run */
      run: string;
      /** @description id of the episode */
      episode: string;
      /** @description the dataset's own name */
      name: string;
      /** @description success, failure or unknown */
      outcome: string;
      /** @description the task in words, as recorded */
      instruction: string;
      /** @description the dataset's task name; NULL if it has none */
      task: string | null;
      /** @description the dataset's date; NULL if it has none */
      date: string | null;
      /** @description frames per second of the recording; NULL if not recorded (1/s) */
      rate: number | null;
      /** @description length of the recording; NULL if not recorded (frames) */
      frames: number | null;
      /** @description frames at which the policy was evaluated */
      keyframes: number;
      /** @description stored precision: float16 or log8 */
      precision: string;
      /** @description revision of the base part */
      revision: number;
      /** @description id of the attempt that holds the base part's files */
      attempt: string;
      /** @description when the base part was committed (UTC) */
      committed: string;
      /** @description size of the base part's files (bytes) */
      bytes: number;
    };
    /** @description Why a request is not answered. */
    Failure: {
      error: components["schemas"]["FailureReason"];
    };
    /** @description Whether an episode's failure was seen coming, by the newest `attnstore failure` of its run. */
    FailurePrediction: {
      /** @description Null: no failures were predicted in this run. */
      part: string | null;
      /** @description Promised rate of successes with an alarm. */
      alpha: number | null;
      weighting: string | null;
      /** @description None of an episode whose outcome was not known. */
      predictors: components["schemas"]["FailurePredictor"][];
    };
    /** @description One way of foreseeing failures: its scores of an episode, and how good it is over the run. */
    FailurePredictor: {
      /** @description `episodes` or `tasks`: of which the predictor saw none like this one's. */
      split: string;
      features: string;
      model: string;
      /** @description Of the scores. */
      keyframes: number[];
      /** @description Of failure, of what was seen up to the keyframe; 0 to 1. */
      score: (number | null)[];
      /** @description Largest score that raises no alarm; null if none would raise one. */
      band: (number | null)[];
      /** @description First keyframe whose score is above the band; null if there is none. */
      alarm: number | null;
      /** @description How often a failure's score is above a success', all calls together, over the run. */
      auroc: number | null;
      low: number | null;
      /** @description Ends of its 95 % interval. */
      high: number | null;
      /** @description Mean of the same with shuffled outcomes; null of baselines. */
      shuffled: number | null;
      p: number | null;
      /** @description That were tested. */
      successes: number;
      /** @description Successes with an alarm. */
      false_alarms: number;
      failures: number;
      /** @description Failures with an alarm. */
      detected: number;
      /** @description Median time from the alarm of a detected failure to its end. */
      before_end: number | null;
      /** @description Of that time: s or frames. */
      unit: string;
    };
    /** @description Code and text. */
    FailureReason: {
      code: string;
      message: string;
    };
    /**
     * @description How a camera's image became a grid of patches.
     *
     *     Every pair is ``(height, width)`` or ``(top, left)``, in pixels.
     *
     *     Examples
     *     --------
     *     A 1280x720 camera letterboxed into 224x224, patches of 14 pixels:
     *
     *     >>> g = Geometry.letterbox((720, 1280), (224, 224), (14, 14))
     *     >>> g.resized, g.offset
     *     ((126, 224), (49, 0))
     *     >>> float(g.coverage()[3, 0]), float(g.coverage()[4, 0]), float(g.coverage()[2, 0])
     *     (0.5, 1.0, 0.0)
     */
    Geometry: {
      /** @description Size of the camera's image. */
      source: [number, number];
      /** @description Size of what the vision encoder sees, padding included. */
      input: [number, number];
      /**
       * @description Size of the cropped image after the resize, inside the input; fractions of a pixel where it was
       *     padded before.
       */
      resized: [number, number];
      /** @description Top-left corner of the resized image inside the input. */
      offset: [number, number];
      /** @description Rows and columns of patches. */
      grid: [number, number];
      /** @description Distance between neighbouring patches, in input pixels. */
      patch: [number, number];
      /**
       * @description (top, left, height, width) of the source that is used; None is all of it. Fractions of a pixel
       *     where the crop is taken after a resize.
       */
      crop?: [number, number, number, number] | null;
      /** @default false */
      flip_vertical: boolean;
      /** @default false */
      flip_horizontal: boolean;
      /**
       * @description Top-left corner of patch (0, 0) in input pixels; (-7.5, -7.5) if centred on pixel (0, 0).
       * @default [
       *       0,
       *       0
       *     ]
       */
      patch_origin: [number, number];
      /** @description Size of what a patch is computed from, centred on the patch; None: of the patch itself. */
      receptive?: [number, number] | null;
    };
    /** @description An episode that is worth opening, and where it is most active. */
    Glimpse: {
      run: string;
      episode: string;
      name: string;
      outcome: string;
      instruction: string;
      keyframes: number;
      /** @description Null without statistics, as what follows. */
      phase: string | null;
      query: string | null;
      camera: string | null;
      layer: number | null;
    };
    /** @description The service is up. */
    Health: {
      status: string;
      version: string;
    };
    InterventionMasksRow: {
      /** @description id of the run */
      run: string;
      /** @description id of the episode; its own name is in table episodes */
      episode: string;
      /** @description the intervention, unique in its part and keyframe: L05/attention, prompt/empty; base: the policy run again on what is stored */
      variant: string;
      /** @description probe-...: digest of what was asked for */
      part: string;
      /** @description ordinal of the keyframe in the episode */
      keyframe: number;
      /** @description frame index in the recording */
      frame: number;
      /** @description fidelity, regions, prompts or knockout */
      probe: string;
      /** @description the dataset's camera name; hand_camera@-1 is what it showed one frame earlier, to a policy with a window */
      camera: string;
      /** @description height of the camera's image (pixels) */
      height: number;
      /** @description width of the camera's image (pixels) */
      width: number;
      /** @description run lengths of the mask as COCO's string, column by column */
      counts: string;
    };
    InterventionsRow: {
      /** @description id of the run */
      run: string;
      /** @description id of the episode; its own name is in table episodes */
      episode: string;
      /** @description the intervention, unique in its part and keyframe: L05/attention, prompt/empty; base: the policy run again on what is stored */
      variant: string;
      /** @description probe-...: digest of what was asked for */
      part: string;
      /** @description ordinal of the keyframe in the episode */
      keyframe: number;
      /** @description frame index in the recording */
      frame: number;
      /** @description fidelity, regions, prompts or knockout */
      probe: string;
      /** @description what was taken away: attention (the top of a map), control, cell, camera, object, object together (in several cameras at once), rank (attention by rank), prompt, attention from > to; base */
      target: string;
      /** @description which one: 1,2 (cell), the object's or the prompt's name, 0.1-0.2 (rank), text > image:hand_camera; NULL if there is one only */
      detail: string | null;
      /** @description cameras whose image was changed */
      cameras: (string | null)[];
      /** @description phase of the map that the mask is made from, or whose attention is blocked; NULL if neither */
      phase: string | null;
      /** @description step of that map; NULL in one-pass phases, and where all steps are blocked */
      step: number | null;
      /** @description layer of that map; NULL if there is none, or several layers are blocked */
      layer: number | null;
      /** @description query tokens of that map, or those that are blocked */
      query_group: string;
      /** @description how the map is reduced over heads: mean, max, active (largest variance over the episode) or a head's number; blocked heads: all */
      heads: string;
      /** @description 0-based; controls and noise differ between repeats */
      repeat: number;
      /** @description share of each changed image's seen pixels that was asked for; NULL if the region says it (0..1) */
      share: number | null;
      /** @description what the pixels were replaced by: black, mean, blur or noise; NULL if no pixel was */
      fill: string | null;
      /** @description pixels replaced, all cameras (pixels) */
      pixels: number;
      /** @description share of the changed images' seen pixels that was replaced (0..1) */
      area: number | null;
      /** @description mean absolute difference of the replaced pixels, over colours: a control that blacks out black changes nothing (0..255) */
      pixel_change: number | null;
      /** @description share of the map's attention on the replaced pixels, mean over the changed cameras; letterbox left out (0..1) */
      attention: number | null;
      /** @description pieces that the moved mask was cut into to find room, all cameras; as many as the mask has if none was cut */
      pieces: number;
      /** @description the prompt that the policy got */
      instruction: string;
      /** @description real degrees of freedom that were compared */
      dof: number;
      /** @description mean squared difference of the action chunk from the base's, over the horizon and the real degrees of freedom (squared normalised action) */
      mse: number | null;
      /** @description scale-invariant: min over alpha >= 0 of |alpha b - a|^2 / |a|^2, a the base's chunk, b the variant's; a reversed action scores 1 (0..1) */
      si_mse: number | null;
      /** @description |b| / |a|: how much longer the variant's action is (ratio) */
      scale: number | null;
      /** @description cosine of the variant's action chunk to the base's; NULL if one of them is 0 (-1..1) */
      cosine: number | null;
    };
    KeyframesRow: {
      /** @description id of the run */
      run: string;
      /** @description id of the episode; its own name is in table episodes */
      episode: string;
      /** @description 'base', or the intervention on the observation */
      variant: string;
      /** @description ordinal of the keyframe in the episode */
      keyframe: number;
      /** @description frame index in the recording */
      frame: number;
      /** @description time since the first frame; NULL if not recorded (s) */
      timestamp: number | null;
      /** @description the prompt that the policy got */
      instruction: string;
      /** @description seed of the initial noise */
      seed: number;
      /** @description recorded robot state (dataset units) */
      state: (number | null)[];
      /** @description recorded action (dataset units) */
      action_recorded: (number | null)[];
      /** @description smallest sum of an attention row over keys, all phases */
      row_sum_min: number | null;
      /** @description largest sum of an attention row over keys, all phases */
      row_sum_max: number | null;
      /** @description text that the policy generated, without markers such as end-of-sequence; NULL if it generates none */
      generated: string | null;
    };
    /** @description How much of a layer's attention falls on a camera, mean over heads, keyframes and episodes. */
    LayerLook: {
      run: string;
      phase: string;
      query: string;
      layer: number;
      camera: string;
      /** @description Share on what the camera shows. */
      image: number | null;
      /** @description Share on its padding. */
      letterbox: number | null;
    };
    /** @description What `attnstore linear-probe` found of one target, on unseen episodes or tasks. */
    LinearProbeAnswer: {
      part: string;
      target: string;
      /** @description `classes`: scores are balanced accuracies; `numbers`: they are R². */
      kind: string;
      classes: string[];
      split: string;
      phase: string;
      span: string;
      tokens: string;
      step: string | null;
      chance: number;
      episodes: number;
      keyframes: number;
      baseline: components["schemas"]["ProbedLayer"];
      layers: components["schemas"]["ProbedLayer"][];
    };
    /** @description One of the most active heads of a phase and camera, mean over keyframes and episodes. */
    LookingHead: {
      run: string;
      phase: string;
      query: string;
      camera: string;
      layer: number;
      head: number;
      variance: number;
      entropy: number | null;
      /** @description Share of its attention on what the camera shows. */
      image: number | null;
      /** @description In which it is most active. */
      episode: string;
      /** @description Of that episode. */
      keyframes: number;
    };
    /** @description The mask of an object at a keyframe. */
    MaskAnswer: {
      keyframe: number;
      camera: string;
      object: string;
      mask_frame: number;
      height: number;
      width: number;
      /** @description Run lengths as COCO's string, column by column. */
      counts: string;
    };
    /** @description A metric of every layer and head. */
    Matrix: {
      metric: string;
      definition: string;
      unit: string;
      phase: string;
      camera: string;
      query: string;
      weighting: string;
      step: number;
      keyframe: number | null;
      values: (number | null)[][];
    };
    /** @description A metric of heads, as in table `head_stats`. */
    MetricAnswer: {
      name: string;
      definition: string;
      unit: string;
    };
    /** @description A ready-made question. */
    NamedAnswer: {
      name: string;
      question: string;
      sql: string;
    };
    /** @description An object whose masks are known. */
    ObjectAnswer: {
      object: string;
      camera: string;
      /** @description detector or gripper */
      source: string;
      /** @description That have a mask of it. */
      keyframes: number;
      /** @description Share of the seen image that it covers, mean. */
      area: number | null;
    };
    /** @description A metric of every head's map against an object, at every keyframe. */
    ObjectMetric: {
      metric: string;
      definition: string;
      unit: string;
      object: string;
      camera: string;
      phase: string;
      query: string;
      step: number | null;
      /** @description By keyframe, layer, head. */
      values: (number | null)[][][];
    };
    /** @description Episodes of one outcome and task of a run. */
    OutcomeCount: {
      run: string;
      outcome: string;
      task: string | null;
      episodes: number;
      keyframes: number;
    };
    /** @description What a store holds, at a glance. */
    Overview: {
      /** @description Episodes that layers and heads are the mean of. */
      sampled: number;
      outcomes: components["schemas"]["OutcomeCount"][];
      layers: components["schemas"]["LayerLook"][];
      heads: components["schemas"]["LookingHead"][];
      glimpses: components["schemas"]["Glimpse"][];
      soundness: components["schemas"]["Soundness"];
    };
    /** @description Some of a table's rows, and how many there are. */
    Page_EpisodesRow_: {
      total: number;
      offset: number;
      limit: number;
      rows: components["schemas"]["EpisodesRow"][];
    };
    /** @description Some of a table's rows, and how many there are. */
    Page_InterventionMasksRow_: {
      total: number;
      offset: number;
      limit: number;
      rows: components["schemas"]["InterventionMasksRow"][];
    };
    /** @description Some of a table's rows, and how many there are. */
    Page_InterventionsRow_: {
      total: number;
      offset: number;
      limit: number;
      rows: components["schemas"]["InterventionsRow"][];
    };
    /** @description Some of a table's rows, and how many there are. */
    Page_KeyframesRow_: {
      total: number;
      offset: number;
      limit: number;
      rows: components["schemas"]["KeyframesRow"][];
    };
    /** @description Some of a table's rows, and how many there are. */
    Page_RunsRow_: {
      total: number;
      offset: number;
      limit: number;
      rows: components["schemas"]["RunsRow"][];
    };
    /** @description Some of a table's rows, and how many there are. */
    Page_SinksRow_: {
      total: number;
      offset: number;
      limit: number;
      rows: components["schemas"]["SinksRow"][];
    };
    /** @description Some of a table's rows, and how many there are. */
    Page_SpansRow_: {
      total: number;
      offset: number;
      limit: number;
      rows: components["schemas"]["SpansRow"][];
    };
    /** @description Some of a table's rows, and how many there are. */
    Page_TokensRow_: {
      total: number;
      offset: number;
      limit: number;
      rows: components["schemas"]["TokensRow"][];
    };
    /** @description A phase's shape and axes. */
    PhaseAnswer: {
      layers: number;
      heads: number;
      steps: number | null;
      /** @description With statistics and stored maps; the first is meant where none is named. */
      query_groups: string[];
      /** @description Whether there are value norms: `weighting=value` is answered. */
      values: boolean;
      /** @description Among the keys. */
      cameras: string[];
      query: components["schemas"]["SpanAnswer"][];
      key: components["schemas"]["SpanAnswer"][];
    };
    /** @description How well a target is read off one layer's hidden states, or off the baseline. */
    ProbedLayer: {
      /** @description -1: what enters layer 0; null of the baseline and of the last hidden states. */
      layer: number | null;
      score: number | null;
      low: number | null;
      /** @description Ends of the 95 % interval. */
      high: number | null;
      shuffled: number | null;
      /** @description 95 % of the scores of shuffled targets are at most this. */
      shuffled_high: number | null;
      /** @description Over the baseline; null of the baseline. */
      gain: number | null;
      gain_low: number | null;
      gain_high: number | null;
      /** @description Of the gain, corrected over layers. */
      p_holm: number | null;
      /** @description Whether it says more than the baseline and than shuffled targets do. */
      knows: boolean;
    };
    /** @description How often something is wrong, and what it is of the first. */
    Reasons: {
      count: number;
      first: string[];
    };
    /** @description One ingest configuration. */
    RunAnswer: {
      run: string;
      config: components["schemas"]["RunConfig"];
      provenance: {
        [key: string]: unknown;
      };
    };
    /**
     * @description What changes the numbers of a run.
     *
     *     Two ingests with an equal configuration are the same run: the second resumes the first. The
     *     code's version, the host and the time are provenance and are kept beside it.
     */
    RunConfig: {
      /** @description Adapter and variant: ``pi0``, ``openpi:pi05_droid``. */
      policy: string;
      /** @description Hub id or directory name, for people; the digest decides. */
      checkpoint: string;
      /** @description SHA-256 over the checkpoint's weights and configuration. */
      checkpoint_digest: string;
      /** @description Data type of the policy's weights: ``bfloat16``, ``float32``. */
      dtype: string;
      /** @description Reader and dataset name: ``droid:toy_cube``. */
      dataset: string;
      /** @description In the order in which the policy gets them. */
      cameras: string[];
      /** @description Frames between keyframes. */
      stride: number;
      /** @description Stored precision: ``float16`` or ``log8``. */
      precision: string;
      /** @description Base of every keyframe's noise seed. */
      seed: number;
      /** @description Further adapter options that change numbers; JSON values. */
      options?: {
        [key: string]: unknown;
      };
      /** @default 2 */
      semantics: number;
    };
    RunsRow: {
      /** @description id of the run */
      run: string;
      /** @description adapter and variant */
      policy: string;
      /** @description hub id or directory name */
      checkpoint: string;
      /** @description SHA-256 over the checkpoint's weights and configuration */
      checkpoint_digest: string;
      /** @description data type of the policy's weights */
      dtype: string;
      /** @description reader and dataset name */
      dataset: string;
      /** @description in the order in which the policy gets them */
      cameras: (string | null)[];
      /** @description distance between keyframes (frames) */
      stride: number;
      /** @description stored precision: float16 or log8 */
      precision: string;
      /** @description base of every keyframe's noise seed */
      seed: number;
      /** @description JSON of further options that change numbers */
      options: string;
      /** @description version of the definitions of the numbers */
      semantics: number;
      /** @description JSON of what does not change numbers: code, host, versions */
      provenance: string;
      /** @description when the run was first recorded; NULL if its file does not say (UTC) */
      created: string | null;
    };
    SinksRow: {
      /** @description id of the run */
      run: string;
      /** @description id of the episode; its own name is in table episodes */
      episode: string;
      /** @description 'base', or the intervention on the observation */
      variant: string;
      /** @description prefix, suffix, joint, decode or vision */
      phase: string;
      /** @description denoising step, 0 = noisiest, or generated token (phase decode), 0 = first; NULL in one-pass phases */
      step: number | null;
      /** @description 0-based layer */
      layer: number;
      /** @description 0-based head */
      head: number;
      /** @description raw: the attention; value: times the norm of what each key would add through the head, rows summing to 1 again. Not both in one mean */
      weighting: string;
      /** @description index on the stored key axis */
      key: number;
      /** @description span that the key is in */
      span: string;
      /** @description the token's string; NULL for other kinds */
      text: string | null;
      /** @description of image tokens, and of every token of a camera's encoder (phase vision): the dataset's camera name; else NULL */
      camera: string | null;
      /** @description patch row; NULL outside images */
      row: number | null;
      /** @description patch column; NULL outside images */
      col: number | null;
      /** @description share of the keyframes above the threshold (0..1) */
      fraction: number | null;
      /** @description mean attention of all valid queries to this key, over keyframes (0..1) */
      mass: number | null;
    };
    /** @description Whether the store is sound, as far as it can be told without reading every file. */
    Soundness: {
      /** @description Smallest and largest sum of an attention row, over all phases and keyframes; null without keyframes. */
      row_sums: [number | null, number | null];
      /** @description When the last episode was committed, UTC. */
      newest: string | null;
      /** @description Heads of a run that pour more than 0.3 into one key in some episode. */
      sink_heads: number;
      parts: components["schemas"]["CommittedParts"][];
      /** @description What the catalog had to leave out. */
      unreadable: components["schemas"]["Reasons"];
      /** @description Episodes that the health gate kept out. */
      quarantined: components["schemas"]["Reasons"];
    };
    /** @description A contiguous run of tokens of one kind on an axis. */
    SpanAnswer: {
      name: string;
      /** @enum {string} */
      kind: "image" | "text" | "state" | "action" | "readout" | "other";
      start: number;
      stop: number;
      camera: string | null;
      grid: [number, number] | null;
      role: string | null;
    };
    SpansRow: {
      /** @description id of the run */
      run: string;
      /** @description id of the episode; its own name is in table episodes */
      episode: string;
      /** @description ordinal of the keyframe in the episode */
      keyframe: number;
      /** @description prefix, suffix, joint, decode or vision */
      phase: string;
      /** @description query or key */
      axis: string;
      /** @description name, unique on its axis */
      span: string;
      /** @description image, text, state, action, readout or other */
      kind: string;
      /** @description task (the instruction), repeated (the instruction beside the images once more), state, generated, template (all other text, such as BOS, labels, a newline) or padding (of an instruction, where the model attends to it); NULL for tokens that are no text */
      role: string | null;
      /** @description of image tokens, and of every token of a camera's encoder (phase vision): the dataset's camera name; else NULL */
      camera: string | null;
      /** @description first index on the stored axis */
      start: number;
      /** @description one past the last index that exists at this keyframe */
      stop: number;
      /** @description one past the last index kept for the span in this episode */
      reserved_stop: number;
      /** @description rows of the patch grid; NULL for tokens of no image */
      rows: number | null;
      /** @description columns of the patch grid; NULL for tokens of no image */
      cols: number | null;
      /** @description first index in the model's own sequence, padding included */
      model_start: number;
    };
    /** @description A query's rows. */
    SqlAnswer: {
      columns: components["schemas"]["ColumnAnswer"][];
      rows: unknown[][];
    };
    /**
     * @description One SQL query, or the name of a ready-made one.
     * @example {
     *       "query": "select outcome, count(*) as n from episodes group by outcome"
     *     }
     * @example {
     *       "named": "camera-by-layer"
     *     }
     */
    SqlQuestion: {
      query?: string | null;
      named?: string | null;
    };
    /** @description A store that is served. */
    StoreAnswer: {
      /** @description By which the service knows it. */
      id: string;
      /** @description Given to the store when it was made. */
      store_id: string;
      runs: number;
      episodes: number;
      keyframes: number;
      bytes: number;
    };
    /** @description A table that SQL may ask. */
    TableAnswer: {
      name: string;
      /** @description What a row is. */
      row: string;
      columns: components["schemas"]["TableColumn"][];
    };
    /** @description A column of a table. */
    TableColumn: {
      name: string;
      type: string;
      unit: string;
      definition: string;
    };
    TokensRow: {
      /** @description id of the run */
      run: string;
      /** @description id of the episode; its own name is in table episodes */
      episode: string;
      /** @description ordinal of the keyframe in the episode */
      keyframe: number;
      /** @description prefix, suffix, joint, decode or vision */
      phase: string;
      /** @description query or key; step: the token that a step of phase decode chose */
      axis: string;
      /** @description index on the stored axis */
      index: number;
      /** @description span that the token is in */
      span: string;
      /** @description as in spans */
      role: string;
      /** @description vocabulary index */
      token_id: number;
      /** @description the string that the token stands for; of an action token the number, normalised */
      text: string;
      /** @description bin of the number that an action token stands for, from the lowest; NULL for other tokens */
      action_bin: number | null;
      /** @description that number in the policy's normalised units; NULL for other tokens */
      action_normalised: number | null;
      /** @description that number un-normalised, as the robot gets it; NULL for other tokens (robot units) */
      action_value: number | null;
      /** @description numbers of the action's spectrum (orthonormal DCT-II of the normalised chunk along its actions) that a FAST token stands for; NULL for other tokens */
      action_coefficients: (number | null)[] | null;
      /** @description place of the first of them: frequency * action_dof + dimension of the action; NULL for other tokens */
      action_coefficient: number | null;
    };
    /** @description A metric at every keyframe. */
    Trace: {
      metric: string;
      definition: string;
      unit: string;
      phase: string;
      camera: string;
      query: string;
      weighting: string;
      step: number;
      layer: number;
      heads: number[];
      frames: number[];
      /** @description By head, then keyframe. */
      values: (number | null)[][];
    };
    /** @description An episode that is being recorded, or whose recorder died before its end. */
    UnderWayAnswer: {
      recording: string;
      /** @description Name of its file, in addresses. */
      episode: string;
      name: string;
      /** @description `live` or `replay`. */
      mode: string;
      instruction: string;
      task: string | null;
      host: string;
      pid: number;
      created: string;
      /**
       * @description `recording`: its process lives. `committing`: it has ended and is being put into the store. `elsewhere`: its
       *     process is another host's, of which nothing is known but `idle`. `dead`: its process is gone, and
       *     `attnstore record recover` ends it.
       * @enum {string}
       */
      state: "recording" | "committing" | "elsewhere" | "dead";
      /** @description Policy calls that can be read: keyframes. */
      calls: number;
      /** @description Calls that were not recorded. */
      dropped: number;
      /** @description Environment step of the newest call. */
      step: number;
      /** @description Seconds since something was written. */
      idle: number;
      cameras: string[];
      /** @description Whose attention can be read already; none in replay mode. */
      phases: string[];
    };
  };
  responses: never;
  parameters: never;
  requestBodies: never;
  headers: never;
  pathItems: never;
}
export type $defs = Record<string, never>;
export interface operations {
  health: {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Health"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  stores: {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["StoreAnswer"][];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  metrics: {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["MetricAnswer"][];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  store: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["StoreAnswer"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  runs: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Page_RunsRow_"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  run: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
        run: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["RunAnswer"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  episodes: {
    parameters: {
      query?: {
        run?: string | null;
        outcome?: ("success" | "failure" | "unknown") | null;
        task?: string | null;
        date?: string | null;
        /** @description Part of the name. */
        name?: string | null;
        /** @description Part of the instruction. */
        instruction?: string | null;
        /** @description Part of the name, instruction, task or run. */
        text?: string | null;
        /** @description SQL condition on table `episodes`. */
        where?: string | null;
        order?: "name" | "date" | "outcome" | "task" | "keyframes" | "committed";
        descending?: boolean;
        limit?: number;
        offset?: number;
      };
      header?: never;
      path: {
        store: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Page_EpisodesRow_"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  overview: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Overview"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  queries: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["NamedAnswer"][];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  query: {
    parameters: {
      query?: {
        format?: ("json" | "ndjson" | "csv" | "arrow" | "parquet") | null;
      };
      header?: never;
      path: {
        store: string;
        name: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["SqlAnswer"];
          "application/x-ndjson": string;
          "text/csv": string;
          "application/vnd.apache.arrow.stream": string;
          "application/vnd.apache.parquet": string;
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  sql: {
    parameters: {
      query?: {
        format?: ("json" | "ndjson" | "csv" | "arrow" | "parquet") | null;
      };
      header?: never;
      path: {
        store: string;
      };
      cookie?: never;
    };
    requestBody: {
      content: {
        "application/json": components["schemas"]["SqlQuestion"];
      };
    };
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["SqlAnswer"];
          "application/x-ndjson": string;
          "text/csv": string;
          "application/vnd.apache.arrow.stream": string;
          "application/vnd.apache.parquet": string;
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  comparison: {
    parameters: {
      query: {
        /** @description Column of `episodes` with two values. */
        by?: ("outcome" | "task" | "date" | "instruction" | "run") | null;
        /** @description SQL condition, instead of `by`. */
        a?: string | null;
        /** @description SQL condition, instead of `by`. */
        b?: string | null;
        /** @description SQL condition for both groups. */
        where?: string | null;
        metric: string;
        phase?: string | null;
        camera?: string | null;
        /** @description A stored query group. */
        query?: string | null;
        step?: number | "last";
        reduce?: "mean" | "max";
        /** @description `value`: attention times the norm of what each key would add through the head, rows made to sum to 1 again; of episodes with value norms. */
        weighting?: "raw" | "value";
        window?: number | null;
        /** @description What keyframes of episodes of different lengths have in common. */
        align?: "none" | "time" | "progress";
        permutations?: number;
        bootstraps?: number;
        alpha?: number;
        seed?: number;
      };
      header?: never;
      path: {
        store: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["CompareAnswer"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  difference: {
    parameters: {
      query: {
        /** @description Column of `episodes` with two values. */
        by?: ("outcome" | "task" | "date" | "instruction" | "run") | null;
        /** @description SQL condition, instead of `by`. */
        a?: string | null;
        /** @description SQL condition, instead of `by`. */
        b?: string | null;
        /** @description SQL condition for both groups. */
        where?: string | null;
        phase: string;
        camera: string;
        layer: number;
        /** @description A head, or the mean over heads. */
        head?: number | "mean";
        /** @description Denoising step, negative ones from the end. By default the last; of decode the first, which every keyframe has. */
        step?: number | null;
        reduce?: "max" | "mean";
        /** @description `value`: attention times the norm of what each key would add through the head, rows made to sum to 1 again; of episodes with value norms. */
        weighting?: "raw" | "value";
        query?: string | null;
        /** @description Points of normalised time, 0 to 1. */
        moments?: number;
        format?: ("npy" | "json") | null;
      };
      header?: never;
      path: {
        store: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["ArrayAnswer"];
          "application/x-npy": string;
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  file: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
        path: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/octet-stream": string;
          "application/json": unknown;
        };
      };
      /** @description A part of the file, as header Range asked for */
      206: {
        headers: {
          [name: string]: unknown;
        };
        content?: never;
      };
      /** @description The range lies outside the file */
      416: {
        headers: {
          [name: string]: unknown;
        };
        content?: never;
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  file_head: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
        path: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/octet-stream": string;
          "application/json": unknown;
        };
      };
      /** @description A part of the file, as header Range asked for */
      206: {
        headers: {
          [name: string]: unknown;
        };
        content?: never;
      };
      /** @description The range lies outside the file */
      416: {
        headers: {
          [name: string]: unknown;
        };
        content?: never;
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  attention: {
    parameters: {
      query: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        /** @description prefix, suffix, ... */
        phase: string;
        /** @description An index (its dimension is dropped), indices `0,3,5`, a range `0:8`, or nothing for all. Negative ones count from the end. */
        keyframe?: string | null;
        /** @description Frame of the recording, instead of keyframe. */
        frame?: number | null;
        /** @description An index (its dimension is dropped), indices `0,3,5`, a range `0:8`, or nothing for all. Negative ones count from the end. */
        step?: string | null;
        /** @description An index (its dimension is dropped), indices `0,3,5`, a range `0:8`, or nothing for all. Negative ones count from the end. */
        layer?: string | null;
        /** @description An index (its dimension is dropped), indices `0,3,5`, a range `0:8`, or nothing for all. Negative ones count from the end. */
        head?: string | null;
        /** @description A group of tokens: a kind (`text`, `image`, `action`), a role (`task`, `state`), a span (`image:hand_camera`), a word (`word:cube`), a range in one (`action:0:5`), or indices. */
        query?: string | null;
        /** @description A group of tokens: a kind (`text`, `image`, `action`), a role (`task`, `state`), a span (`image:hand_camera`), a word (`word:cube`), a range in one (`action:0:5`), or indices. */
        key?: string | null;
        /** @description `value`: attention times the norm of what each key would add through the head, rows made to sum to 1 again; of episodes with value norms. */
        weighting?: "raw" | "value";
        /** @description Instead of Accept. */
        format?: ("npy" | "json") | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["ArrayAnswer"];
          "application/x-npy": string;
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  maps: {
    parameters: {
      query: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        phase: string;
        camera: string;
        /** @description An index (its dimension is dropped), indices `0,3,5`, a range `0:8`, or nothing for all. Negative ones count from the end. */
        layer?: string | null;
        /** @description As for attention; `active` is the head whose map, as it is asked for here, varies most: at the keyframe or, without one, over the episode; `mean` is the mean of all. */
        head?: string | null;
        /** @description Denoising step, negative ones from the end. By default the last; of decode the first, which every keyframe has. */
        step?: number | null;
        /** @description Over the query tokens. */
        reduce?: "max" | "mean";
        /** @description An index (its dimension is dropped), indices `0,3,5`, a range `0:8`, or nothing for all. Negative ones count from the end. */
        keyframe?: string | null;
        /** @description A group of tokens: a kind (`text`, `image`, `action`), a role (`task`, `state`), a span (`image:hand_camera`), a word (`word:cube`), a range in one (`action:0:5`), or indices. */
        query?: string | null;
        /** @description Take attention sinks out. */
        sink_corrected?: boolean;
        /** @description What makes a head the active one: the variance of its map over the patches that show image, or (`lab`) over the whole grid, letterbox included. */
        active?: "image" | "lab";
        /** @description `value`: attention times the norm of what each key would add through the head, rows made to sum to 1 again; of episodes with value norms. */
        weighting?: "raw" | "value";
        /** @description Instead of Accept. */
        format?: ("npy" | "json") | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["ArrayAnswer"];
          "application/x-npy": string;
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  rollout: {
    parameters: {
      query: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        phase: string;
        camera: string;
        keyframe: number;
        /** @description Up to this layer, from the first. */
        layer: number;
        /** @description Denoising step, negative ones from the end. */
        step?: number;
        /** @description Averaged over these tokens. */
        query?: string | null;
        /** @description Instead of Accept. */
        format?: ("npy" | "json") | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["ArrayAnswer"];
          "application/x-npy": string;
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  active_head: {
    parameters: {
      query: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        phase: string;
        camera: string;
        layer: number;
        /** @description Denoising step, negative ones from the end. By default the last; of decode the first, which every keyframe has. */
        step?: number | null;
        /** @description Over the query tokens. */
        reduce?: "max" | "mean";
        /** @description One keyframe; else over the episode. */
        keyframe?: number | null;
        /** @description A group of tokens: a kind (`text`, `image`, `action`), a role (`task`, `state`), a span (`image:hand_camera`), a word (`word:cube`), a range in one (`action:0:5`), or indices. */
        query?: string | null;
        /** @description Take attention sinks out. */
        sink_corrected?: boolean;
        /** @description What makes a head the active one: the variance of its map over the patches that show image, or (`lab`) over the whole grid, letterbox included. */
        active?: "image" | "lab";
        /** @description `value`: attention times the norm of what each key would add through the head, rows made to sum to 1 again; of episodes with value norms. */
        weighting?: "raw" | "value";
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["ActiveHead"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  episode: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["EpisodeAnswer"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  frame: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
      };
      header?: never;
      path: {
        keyframe: number;
        camera: string;
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "image/jpeg": string;
          "image/png": string;
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  matrix: {
    parameters: {
      query: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        phase: string;
        camera: string;
        /** @description A stored query group. */
        query?: string | null;
        /** @description Denoising step, negative ones from the end. By default the last; of decode the first, which every keyframe has. */
        step?: number | null;
        /** @description One keyframe; else over the episode. */
        keyframe?: number | null;
        /** @description Over the keyframes. */
        reduce?: "mean" | "max";
        /** @description `value`: attention times the norm of what each key would add through the head, rows made to sum to 1 again; of episodes with value norms. */
        weighting?: "raw" | "value";
      };
      header?: never;
      path: {
        metric: string;
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Matrix"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  trace: {
    parameters: {
      query: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        phase: string;
        camera: string;
        /** @description A stored query group. */
        query?: string | null;
        /** @description Denoising step, negative ones from the end. By default the last; of decode the first, which every keyframe has. */
        step?: number | null;
        layer: number;
        /** @description `all`: a trace each. */
        head?: number | ("active" | "all");
        /** @description `value`: attention times the norm of what each key would add through the head, rows made to sum to 1 again; of episodes with value norms. */
        weighting?: "raw" | "value";
      };
      header?: never;
      path: {
        metric: string;
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Trace"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  keyframes: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        limit?: number;
        offset?: number;
        keyframe?: number | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Page_KeyframesRow_"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  tokens: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        limit?: number;
        offset?: number;
        phase?: string | null;
        keyframe?: number | null;
        axis?: ("query" | "key" | "step") | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Page_TokensRow_"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  spans: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        limit?: number;
        offset?: number;
        phase?: string | null;
        keyframe?: number | null;
        axis?: ("query" | "key" | "step") | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Page_SpansRow_"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  sinks: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        limit?: number;
        offset?: number;
        phase?: string | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Page_SinksRow_"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  objects: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["ObjectAnswer"][];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  masks: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        /** @description One keyframe, or all. */
        keyframe?: number | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["MaskAnswer"][];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  object_metric: {
    parameters: {
      query: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        object: string;
        camera: string;
        phase: string;
        /** @description A stored query group. */
        query?: string | null;
        /** @description Denoising step, negative ones from the end. By default the last; of decode the first, which every keyframe has. */
        step?: number | null;
        /** @description `value`: attention times the norm of what each key would add through the head, rows made to sum to 1 again; of episodes with value norms. */
        weighting?: "raw" | "value";
      };
      header?: never;
      path: {
        metric: string;
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["ObjectMetric"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  policy_array: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        /** @description One keyframe, or all. */
        keyframe?: number | null;
        /** @description Instead of Accept. */
        format?: ("npy" | "json") | null;
      };
      header?: never;
      path: {
        name: "actions" | "actions_recorded" | "state" | "denoising";
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["ArrayAnswer"];
          "application/x-npy": string;
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  interventions: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        /** @description One keyframe, or all. */
        keyframe?: number | null;
        limit?: number;
        offset?: number;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Page_InterventionsRow_"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  intervention_masks: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        /** @description One keyframe, or all. */
        keyframe?: number | null;
        limit?: number;
        offset?: number;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Page_InterventionMasksRow_"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  curves: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        /** @description One keyframe; else the mean over all that were probed. */
        keyframe?: number | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["CurveAnswer"][];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  linear_probes: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
        run: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["LinearProbeAnswer"][];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  failure: {
    parameters: {
      query?: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
      };
      header?: never;
      path: {
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["FailurePrediction"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  recordings: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["UnderWayAnswer"][];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  recorded_picture: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
        recording: string;
        file: string;
        call: number;
        camera: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "image/jpeg": string;
          "image/png": string;
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  recorded_maps: {
    parameters: {
      query?: never;
      header?: never;
      path: {
        store: string;
        recording: string;
        file: string;
        call: number;
        phase: string;
        camera: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["ArrayAnswer"];
          "application/x-npy": string;
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  divergence: {
    parameters: {
      query: {
        /** @description The episode's `version`. If it is the current one, the answer may be kept for ever. */
        v?: string | null;
        phase: string;
        camera: string;
        /** @description A stored query group. */
        query?: string | null;
        /** @description Denoising step, negative ones from the end. By default the last; of decode the first, which every keyframe has. */
        step?: number | null;
        reduce?: "max" | "mean";
        /** @description `value`: attention times the norm of what each key would add through the head, rows made to sum to 1 again; of episodes with value norms. */
        weighting?: "raw" | "value";
      };
      header?: never;
      path: {
        other: string;
        store: string;
        run: string;
        episode: string;
      };
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["DivergenceAnswer"];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
  tables: {
    parameters: {
      query?: never;
      header?: never;
      path?: never;
      cookie?: never;
    };
    requestBody?: never;
    responses: {
      /** @description Successful Response */
      200: {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["TableAnswer"][];
        };
      };
      /** @description Client Error */
      "4XX": {
        headers: {
          [name: string]: unknown;
        };
        content: {
          "application/json": components["schemas"]["Failure"];
        };
      };
    };
  };
}
